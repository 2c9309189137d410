"""The one door: from prepared weights, or tensors at hand, to a model; and the families behind it."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from virnucpro.attention import choose_attention
from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.checkpoints.tensors import StoredTensors
from virnucpro.engine import load as load_module
from virnucpro.engine.load import build_model, load_model
from virnucpro.models import families
from virnucpro.models.base import ModelFacts
from virnucpro.models.esm2.family import ESM2_FAMILY
from virnucpro.models.esm2.model import Parameters
from virnucpro.models.esm2.sizes import DEMO_ARCHITECTURE
from virnucpro.models.esm2.synthetic import random_state_dict
from virnucpro.weights.manifest import WeightsManifest, read_manifest
from virnucpro.weights.prepare import prepare_weights

CPU = torch.device("cpu")
LOGGER = logging.getLogger("test")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "demo.safetensors"
    prepare_weights("esm2_demo", path, log=lambda line: None)
    return path


@pytest.fixture(scope="module")
def manifest(weights: Path) -> WeightsManifest:
    return read_manifest(weights)


def test_a_model_from_prepared_weights(
    weights: Path, manifest: WeightsManifest, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        model = load_model(weights, manifest=manifest, device="cpu", precision="bf16", logger=LOGGER)
    assert model.facts == ModelFacts(
        family="esm2",
        layers=4,
        embed_dim=64,
        device=CPU,
        dtype=torch.bfloat16,
        attention="sdpa",
        implementation="standard_attention",
        layers_run="eager",
    )
    assert caplog.messages[-1] == "cpu: bfloat16, attention sdpa (standard_attention), layers eager"
    tokens, segments = torch.tensor([0, 5, 6, 2]), Segments.from_lengths([4])
    assert {layer: tuple(x.shape) for layer, x in model(tokens, segments, [0, 4]).items()} == {0: (4, 64), 4: (4, 64)}


def test_weights_that_are_not_those_of_the_job_are_refused(weights: Path, manifest: WeightsManifest) -> None:
    other = replace(manifest, sha256="1" * 64)
    with pytest.raises(UserError, match="were replaced since the job began"):
        load_model(weights, manifest=other, device="cpu", logger=LOGGER)
    assert load_model(weights, device="cpu", logger=LOGGER).facts.dtype == torch.float32


def test_a_model_that_does_not_fit_is_told_in_a_sentence(
    weights: Path, monkeypatch: pytest.MonkeyPatch, manifest: WeightsManifest
) -> None:
    def full(*args: Any, **options: Any) -> Parameters:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(Parameters, "arrange", full)
    with pytest.raises(UserError, match=r"demo\.safetensors needs about 0\.0 GB in float32, which cpu does not have"):
        load_model(weights, device="cpu", logger=LOGGER)


@dataclass(frozen=True)
class OtherSizes:
    layers: int = 1
    embed_dim: int = 8
    heads: int = 2
    head_dim: int = 4
    parameters: int = 0
    family: Literal["other"] = field(default="other", repr=False)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {}


class OtherFamily:
    """Another architecture, whose attention has slopes."""

    name = "other"

    def read(self, stored: StoredTensors) -> None:
        return None

    def slopes(self, sizes: OtherSizes) -> Tensor:
        return torch.tensor([0.5, 0.25])

    def build(self, state: Any, sizes: OtherSizes, attention: Any, **options: Any) -> Any:
        chosen = attention()
        self.facts = ModelFacts(
            "other", 1, 8, options["device"], options["dtype"], chosen.name, chosen.implementation, "eager"
        )
        return self


def test_another_family_is_built_with_an_attention_tried_with_its_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", (OtherFamily(), ESM2_FAMILY))
    asked = []

    def choose(*args: Any, slopes: Tensor | None) -> Any:
        asked.append(slopes)
        return choose_attention(*args, slopes=slopes)

    monkeypatch.setattr(load_module, "choose_attention", choose)
    model = build_model({}, OtherSizes(), device=CPU, dtype=torch.float32, logger=LOGGER)
    assert model.facts.family == "other"
    build_model(random_state_dict(DEMO_ARCHITECTURE), DEMO_ARCHITECTURE, device=CPU, dtype=torch.float32, logger=LOGGER)
    assert [None if slopes is None else slopes.tolist() for slopes in asked] == [[0.5, 0.25], None]


def test_what_no_family_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        families.read_checkpoint(tmp_path)
    torch.save({"encoder.embeddings.token_type_embeddings.weight": torch.zeros(2, 4)}, tmp_path / "bert.bin")
    with pytest.raises(UserError, match="is a BERT: esm2 or mosaic_bert is read"):
        families.read_checkpoint(tmp_path / "bert.bin")
    with pytest.raises(UserError, match="no checkpoint at"):
        families.read_checkpoint(tmp_path / "esm2_none.pt")


def test_the_tokenizer_of_esm2() -> None:
    tokenizer = ESM2_FAMILY.tokenizer()
    assert (tokenizer.begin, tokenizer.end) == ((0,), (2,))
    assert [ids.tolist() for ids in tokenizer.encode([b"LAG"], ["p"])] == [[4, 5, 6]]


def mkls_record_of_the_cpu() -> ctypes.c_int:
    """Where MKL keeps for its vector functions which CPU this is; -1 before the first call of one."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.cast(ctypes.CDLL(str(library)).mkl_vml_serv_cpu_detect, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        pytest.skip("this torch has no such MKL")
    code = bytes((ctypes.c_ubyte * 6).from_address(function))
    if code[:2] != b"\x8b\x05":  # mov eax, [the next instruction's address + what follows]
        pytest.skip("this MKL keeps it elsewhere")
    return ctypes.c_int.from_address(function + 6 + int.from_bytes(code[2:], "little", signed=True))


def test_mkl_knows_the_cpu_when_a_model_is_built() -> None:
    record = mkls_record_of_the_cpu()
    torch.ones(1).cos()
    known = record.value
    assert known >= 0
    try:
        record.value = -1  # as in a new process
        build_model(
            random_state_dict(DEMO_ARCHITECTURE), DEMO_ARCHITECTURE, device=CPU, dtype=torch.float32, logger=LOGGER
        )
        assert record.value == known
    finally:
        record.value = known
