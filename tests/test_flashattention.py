"""FlashAttention-2: which GPU gets it, what the log says, and fair-esm's interface over both implementations.

GPUs that we lack are stood in for by their capability; the tests marked ``gpu`` run on a real one.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from esm.model.esm2 import ESM2
from torch import Tensor, nn

from tests.oracle import fair_esm, random_protein
from virnucpro.attention.candidates import BucketedAttention, RunsAttention
from virnucpro.base.errors import UserError
from virnucpro.cuda import attention_utils
from virnucpro.cuda.attention_utils import (
    FLASH,
    STANDARD,
    attention_support,
    configure_flash_attention,
    get_attention_implementation,
    is_flash_attention_available,
)
from virnucpro.models import ESM2WithFlashAttention, load_esm2_model
from virnucpro.models.esm2.model import ESM2 as PackedESM2
from virnucpro.models.esm2.sizes import ESM2_MODELS, Architecture
from virnucpro.models.esm2.synthetic import random_state_dict, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
TINY = Architecture(layers=3, embed_dim=64, heads=4)
Patch = pytest.MonkeyPatch


def pretend_gpu(patch: Patch, *capabilities: tuple[int, int], probe: Any = None) -> None:
    """GPUs of these capabilities; ``probe`` takes the place of the two computations compared."""
    patch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    patch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    patch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: capabilities[torch.device(device).index or 0]
    )
    patch.setattr(torch.cuda, "get_device_name", lambda device=None: f"Pretend {torch.device(device).index}")
    patch.setattr(torch.version, "cuda", "13.0")
    if probe is not None:
        patch.setattr(attention_utils, "run_probe", probe)


def config_of(model: nn.Module) -> Any:
    return model.config


def agreeing(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.ones(4), torch.ones(4) + 1e-3


def disagreeing(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.ones(4), torch.ones(4) + 0.1


def not_a_number(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.full((4,), float("nan")), torch.ones(4)


def failing(device: torch.device) -> tuple[Tensor, Tensor]:
    raise RuntimeError("No available kernel. Aborting execution.")


@pytest.mark.parametrize(
    ("capability", "probe", "expected", "reason"),
    [
        ((6, 1), agreeing, STANDARD, "needs 8.0"),
        ((7, 5), agreeing, STANDARD, "compute capability 7.5; FlashAttention-2 needs 8.0 or newer"),
        ((8, 0), agreeing, FLASH, "probe agrees"),
        ((8, 6), agreeing, FLASH, "probe agrees"),
        ((9, 0), agreeing, FLASH, "probe agrees"),
        ((12, 0), agreeing, FLASH, "probe agrees"),
        ((9, 0), disagreeing, STANDARD, "disagrees with plain mathematics by 0.1"),
        ((9, 0), not_a_number, STANDARD, "disagrees with plain mathematics by nan"),
        ((9, 0), failing, STANDARD, "does not run: No available kernel"),
    ],
)
def test_capability_and_probe_decide(
    monkeypatch: Patch, capability: tuple[int, int], probe: Any, expected: str, reason: str
) -> None:
    pretend_gpu(monkeypatch, capability, probe=probe)
    assert get_attention_implementation() == expected
    assert is_flash_attention_available() == (expected == FLASH)
    assert reason in attention_support().reason


def test_each_device_of_a_mixed_machine_is_asked_for_itself(monkeypatch: Patch) -> None:
    pretend_gpu(monkeypatch, (7, 5), (9, 0), probe=agreeing)
    found = [get_attention_implementation(device) for device in (None, "cuda:0", "cuda:1", 1, torch.device("cuda", 1))]
    assert found == [STANDARD, STANDARD, FLASH, FLASH, FLASH]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_there_is_standard_attention_and_a_reason() -> None:
    assert get_attention_implementation() == STANDARD
    assert not is_flash_attention_available()
    assert attention_support().reason


@pytest.mark.parametrize("broken", ["is_available", "get_device_capability", "get_device_name", "current_device"])
def test_a_driver_that_fails_is_a_reason_and_no_traceback(monkeypatch: Patch, broken: str) -> None:
    pretend_gpu(monkeypatch, (9, 0), probe=agreeing)

    def fail(*args: Any) -> Any:
        raise RuntimeError("CUDA driver initialization failed. You might not have a CUDA gpu.")

    monkeypatch.setattr(torch.cuda, broken, fail)
    support = attention_support()
    assert support.implementation == STANDARD
    assert "CUDA driver initialization failed" in support.reason


def test_a_device_that_is_none_is_a_reason_and_no_traceback() -> None:
    assert get_attention_implementation("no such device") == STANDARD
    assert get_attention_implementation("cpu") == STANDARD


def test_the_probe_on_a_machine_without_cuda_is_never_taken_for_success(monkeypatch: Patch) -> None:
    """The real probe under a simulated GPU: it must fail on this torch, and be reported."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    pretend_gpu(monkeypatch, (9, 0))
    support = attention_support()
    assert support.implementation == STANDARD
    assert "does not run" in support.reason


def test_the_probe_compares_what_flash_and_mathematics_give(monkeypatch: Patch) -> None:
    """The probe's own arithmetic, run where torch's CPU kernel stands in for the GPU's."""
    flash, exact = attention_utils.run_probe(torch.device("cpu"))
    assert flash.dtype == exact.dtype == torch.float32
    assert 0 < float((flash - exact).abs().max()) < attention_utils.PROBE_TOLERANCE


def test_configuration_and_log_where_flash_runs(monkeypatch: Patch, caplog: pytest.LogCaptureFixture) -> None:
    pretend_gpu(monkeypatch, (8, 0), probe=agreeing)
    model = nn.Linear(4, 4).half()
    setattr(model, "config", SimpleNamespace(hidden_size=4))  # noqa: B010
    with caplog.at_level(logging.INFO):
        assert configure_flash_attention(model, logging.getLogger("a")) is model
    assert config_of(model)._attn_implementation == "sdpa"
    assert config_of(model).use_flash_attention_2 is True
    assert config_of(model).hidden_size == 4
    assert any(text.startswith("FlashAttention-2: enabled (Pretend 0") for text in caplog.messages)
    assert "Using standard attention" not in caplog.text


def test_configuration_and_log_where_flash_does_not_run(monkeypatch: Patch, caplog: pytest.LogCaptureFixture) -> None:
    pretend_gpu(monkeypatch, (7, 5))
    model = nn.Linear(4, 4)
    with caplog.at_level(logging.INFO):
        assert configure_flash_attention(model) is model
    assert config_of(model).use_flash_attention_2 is False
    assert not hasattr(config_of(model), "_attn_implementation")
    assert caplog.messages == [
        "Using standard attention (Pretend 0, compute capability 7.5; FlashAttention-2 needs 8.0 or newer)"
    ]


def test_float32_is_configured_without_flash_which_does_not_compute_it(
    monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_gpu(monkeypatch, (8, 0), probe=agreeing)
    with caplog.at_level(logging.INFO):
        model = configure_flash_attention(nn.Linear(4, 4))
    assert config_of(model).use_flash_attention_2 is False
    assert [text.split(" (")[0] for text in caplog.messages] == ["Using standard attention"]
    assert "flash computes no float32: float16 and bfloat16 run with it" in caplog.text


def test_the_device_that_a_model_will_run_on_is_asked(monkeypatch: Patch) -> None:
    pretend_gpu(monkeypatch, (8, 0), (7, 5), probe=agreeing)
    model = nn.Linear(4, 4).half()
    for device, flash in (("cuda:1", False), ("cpu", False), ("cuda:0", True)):
        assert config_of(configure_flash_attention(model, device=device)).use_flash_attention_2 is flash


def test_wrapping_configures_the_model_for_its_own_device(monkeypatch: Patch, caplog: pytest.LogCaptureFixture) -> None:
    pretend_gpu(monkeypatch, (8, 0), probe=agreeing)
    with caplog.at_level(logging.INFO):
        model = ESM2WithFlashAttention(fair_esm(random_state_dict(TINY), TINY))
    assert config_of(model).use_flash_attention_2 is False
    assert "Using standard attention (the device is the CPU)" in caplog.text
    assert "FlashAttention-2: enabled" not in caplog.text


def test_a_model_without_parameters_or_configuration_is_configured() -> None:
    assert config_of(configure_flash_attention(nn.Identity())).use_flash_attention_2 in (False, True)


def test_the_command_line_question_is_answered_without_a_gpu() -> None:
    code = "from virnucpro.cuda.attention_utils import get_attention_implementation as g; print(g())"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == STANDARD


# fair-esm's interface


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "esm2_tiny.pt"
    write_checkpoint(path, TINY, seed=3)
    return path


@pytest.fixture(scope="module")
def original() -> ESM2:
    return fair_esm(random_state_dict(TINY, seed=3), TINY)


BATCH = [
    ("long", random_protein(120, 1)),
    ("short", "MK"),
    ("masked", "MKT<mask>LV"),
    ("same", random_protein(120, 2)),
]


def real_places(tokens: Tensor) -> Tensor:
    return tokens != 1


def test_forward_gives_what_fair_esm_gives(checkpoint: Path, original: ESM2) -> None:
    model, convert = load_esm2_model(str(checkpoint), "cpu")
    labels, sequences, tokens = convert(BATCH)
    assert labels == [name for name, _ in BATCH]
    assert sequences == [sequence for _, sequence in BATCH]
    with torch.no_grad():
        expected = original(tokens, repr_layers=[0, 2, 3])
    found = model(tokens, repr_layers=[0, 2, 3])
    assert set(found) == set(expected)
    assert set(found["representations"]) == {0, 2, 3}
    real = real_places(tokens)
    for layer in (0, 2, 3):
        own, theirs = found["representations"][layer], expected["representations"][layer]
        assert own.shape == theirs.shape
        assert own.dtype == theirs.dtype
        torch.testing.assert_close(own[real], theirs[real], rtol=0, atol=2e-5)
        assert (own[~real] == 0).all()
    torch.testing.assert_close(found["logits"][real], expected["logits"][real], rtol=0, atol=1e-4)


def test_attention_weights_and_contacts_are_fair_esms_own(checkpoint: Path, original: ESM2) -> None:
    model, convert = load_esm2_model(str(checkpoint), "cpu")
    tokens = convert(BATCH)[2]
    with torch.no_grad():
        expected = original(tokens, repr_layers=[3], return_contacts=True)
    found = model(tokens, repr_layers=[3], return_contacts=True)
    assert set(found) == {"logits", "representations", "attentions", "contacts"}
    torch.testing.assert_close(found["attentions"], expected["attentions"], rtol=0, atol=2e-6)
    torch.testing.assert_close(found["contacts"], expected["contacts"], rtol=0, atol=2e-6)
    torch.testing.assert_close(model.predict_contacts(tokens), expected["contacts"], rtol=0, atol=2e-6)
    assert "contacts" not in model(tokens, need_head_weights=True)


def test_unknown_layers_are_left_out_as_fair_esm_does(checkpoint: Path, original: ESM2) -> None:
    model, convert = load_esm2_model(str(checkpoint), "cpu")
    tokens = convert(BATCH[:1])[2]
    assert set(model(tokens, repr_layers=[2, 99])["representations"]) == {2}
    assert set(original(tokens, repr_layers=[2, 99])["representations"]) == {2}
    assert model(tokens)["representations"] == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_loaded_later_are_used(dtype: torch.dtype) -> None:
    first, second = (random_state_dict(TINY, seed=seed) for seed in (3, 4))
    model = ESM2WithFlashAttention(fair_esm(first, TINY)).to(dtype)
    other = ESM2WithFlashAttention(fair_esm(second, TINY)).to(dtype)
    tokens = model.alphabet.get_batch_converter()(BATCH)[2]
    before = model(tokens, repr_layers=[3])["representations"][3]
    model.load_state_dict(other.state_dict())
    after = model(tokens, repr_layers=[3])["representations"][3]
    assert torch.equal(after, other(tokens, repr_layers=[3])["representations"][3])
    assert not torch.equal(after, before)


def test_gaps_within_a_row_keep_their_positions(checkpoint: Path, original: ESM2) -> None:
    """fair-esm counts a position for padding in the middle of a row; so must we."""
    model, convert = load_esm2_model(str(checkpoint), "cpu")
    tokens = convert(BATCH[:1])[2].clone()
    tokens[0, 40:45] = 1
    real = real_places(tokens)
    with torch.no_grad():
        expected = original(tokens, repr_layers=[3])["representations"][3]
    found = model(tokens, repr_layers=[3])["representations"][3]
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=2e-5)


@pytest.mark.parametrize("attention", [RunsAttention(), BucketedAttention()], ids=["runs", "bucketed"])
def test_packed_forward_with_each_implementation(original: ESM2, attention: Any) -> None:
    state = random_state_dict(TINY, seed=3)
    model = ESM2WithFlashAttention(fair_esm(state, TINY), attention=attention)
    assert model.attention_kernel == attention.name
    assert model.attention_impl == STANDARD
    convert = model.alphabet.get_batch_converter()
    tokens = convert(BATCH)[2]
    real = real_places(tokens)
    lengths = real.sum(1)
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    found = model.forward_packed(tokens[real], ends, int(lengths.max()), [1, 3])
    with torch.no_grad():
        expected = original(tokens, repr_layers=[1, 3])["representations"]
    for layer in (1, 3):
        torch.testing.assert_close(found[layer], expected[layer][real], rtol=0, atol=2e-5)


def test_a_packed_batch_that_contradicts_itself_is_refused(checkpoint: Path) -> None:
    model, _ = load_esm2_model(str(checkpoint), "cpu")
    tokens = torch.tensor([0, 5, 2, 0, 6, 2])
    with pytest.raises(ValueError, match="cu_seqlens"):
        model.forward_packed(tokens, torch.tensor([0, 3, 5], dtype=torch.int32))
    with pytest.raises(ValueError, match="max_seqlen"):
        model.forward_packed(tokens, torch.tensor([0, 3, 6], dtype=torch.int32), 2)


def test_wrapping_takes_no_memory_and_leaves_the_model_as_it_was(original: ESM2) -> None:
    state = random_state_dict(TINY, seed=3)
    model = fair_esm(state, TINY)
    tokens = torch.tensor([[0, 5, 6, 7, 2]])
    wrapped = ESM2WithFlashAttention(model)
    attention = model.layers[0].self_attn
    packed = wrapped.packed()
    assert isinstance(packed, PackedESM2)
    fused = packed.parameters.layers[0].qkv.weight
    assert attention.k_proj.weight.data_ptr() == fused[TINY.embed_dim :].data_ptr()
    assert set(model.state_dict()) == set(original.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens, repr_layers=[3])["representations"][3],
            original(tokens, repr_layers=[3])["representations"][3],
            rtol=0,
            atol=2e-6,
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_keeps_frequencies_and_follows_the_model(dtype: torch.dtype, original: ESM2) -> None:
    model = ESM2WithFlashAttention(fair_esm(random_state_dict(TINY, seed=3), TINY)).to(dtype)
    packed = model.packed()
    assert packed.facts.dtype == dtype
    assert isinstance(packed, PackedESM2)
    assert torch.equal(packed.parameters.layers[0].inv_freq, original.layers[0].self_attn.rot_emb.inv_freq)
    tokens = torch.tensor([[0, *range(4, 24), 2]])
    with torch.no_grad():
        expected = original(tokens, repr_layers=[3], need_head_weights=True)
    for weights in (False, True):
        found = model(tokens, repr_layers=[3], need_head_weights=weights)
        assert found["representations"][3].dtype == dtype
        error = (found["representations"][3].float() - expected["representations"][3]).abs().max()
        assert error < (0.02 if dtype == torch.float16 else 0.15)


def test_a_model_rounded_to_bfloat16_before_wrapping_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    ESM2WithFlashAttention(fair_esm(random_state_dict(TINY), TINY, dtype=torch.bfloat16))
    assert "wrap it first and cast it then" in caplog.text


def test_loading_gives_eval_mode_no_gradients_and_a_log(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        model, _ = load_esm2_model(str(checkpoint), "cpu", logging.getLogger("b"))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.attention_impl == STANDARD
    assert config_of(model).use_flash_attention_2 is False
    assert "Using standard attention (the device is the CPU)" in caplog.text
    assert f"{TINY.parameters:,} parameters, float32, standard_attention (sdpa) on cpu" in caplog.text


def test_loading_without_the_contact_file_works_and_says_what_it_lacks(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "esm2_alone.pt", TINY, regression=False)
    model, convert = load_esm2_model(str(tmp_path / "esm2_alone.pt"), "cpu")
    tokens = convert(BATCH[:2])[2]
    assert set(model(tokens, repr_layers=[3])) == {"logits", "representations"}
    with pytest.raises(UserError, match=r"contact-regression\.pt"):
        model.predict_contacts(tokens)


@pytest.mark.parametrize(
    ("device", "precision", "says"),
    [
        ("cuda", "auto", "no CUDA GPU"),
        ("cuda:0", "fp16", "no CUDA GPU"),
        ("tpu", "auto", "not known"),
        ("mps", "auto", "not supported"),
        ("cpu", "fp4", "precision 'fp4' is not known"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(
    monkeypatch: Patch, checkpoint: Path, device: str, precision: str, says: str
) -> None:
    pretend_gpu(monkeypatch)
    with pytest.raises(UserError, match=says):
        load_esm2_model(str(checkpoint), device, precision=precision)


def test_a_gpu_number_that_is_not_there_is_refused(monkeypatch: Patch, checkpoint: Path) -> None:
    pretend_gpu(monkeypatch, (9, 0))
    with pytest.raises(UserError, match=r"sees 1 CUDA GPU"):
        load_esm2_model(str(checkpoint), "cuda:3")


def test_memory_does_not_grow_over_batches(checkpoint: Path) -> None:
    """Resident memory after many batches of changing shape, compared with after a few."""
    code = f"""
import resource, sys, torch
from virnucpro.models import load_esm2_model
model, convert = load_esm2_model({str(checkpoint)!r}, "cpu")
def run(count):
    for number in range(count):
        model(convert([("a", "MK" * (10 + number % 50)), ("b", "ACD" * (1 + number % 30))])[2], repr_layers=[3])
run(100)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(400)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000, "kilobytes"


@pytest.mark.slow
def test_a_full_size_architecture_loads_from_a_checkpoint(tmp_path: Path) -> None:
    architecture = ESM2_MODELS["esm2_t30_150M_UR50D"]
    path = tmp_path / "esm2_full.pt"
    write_checkpoint(path, architecture, dtype=torch.float16)
    model, convert = load_esm2_model(str(path), "cpu")
    sequences = [("a", random_protein(40, 1)), ("b", random_protein(25, 2))]
    tokens = convert(sequences)[2]
    state = {name: tensor.half().float() for name, tensor in random_state_dict(architecture).items()}
    with torch.no_grad():
        expected = fair_esm(state, architecture)(tokens, repr_layers=[30])["representations"][30]
    real = real_places(tokens)
    torch.testing.assert_close(
        model(tokens, repr_layers=[30])["representations"][30][real], expected[real], rtol=0, atol=2e-5
    )


# On a real GPU


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_loading_on_a_gpu_runs_the_attention_that_it_names(
    checkpoint: Path, precision: str, caplog: pytest.LogCaptureFixture, original: ESM2
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")
    with caplog.at_level(logging.INFO):
        model, convert = load_esm2_model(str(checkpoint), "cuda", precision=precision)
    flash = is_flash_attention_available() and precision != "fp32"
    assert model.attention_impl == (FLASH if flash else STANDARD)
    assert ("FlashAttention-2: enabled" in caplog.text) == flash
    tokens = convert(BATCH)[2]
    with torch.no_grad():
        expected = original(tokens, repr_layers=[3])["representations"][3]
    found = model(tokens.cuda(), repr_layers=[3])["representations"][3].float().cpu()
    real = real_places(tokens)
    error = float((found[real] - expected[real]).abs().max())
    assert error < {"fp32": 2e-5, "fp16": 0.02, "bf16": 0.15}[precision]
