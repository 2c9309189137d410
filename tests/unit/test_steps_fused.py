"""Fused forms: the kernels run in Triton's interpreter here, on a GPU in tests/gpu; and the choice of a form."""

from __future__ import annotations

import gc
import hashlib
import importlib
import logging
import weakref
from collections.abc import Callable
from importlib.resources import files
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.oracle import as_numbers
from tests.unit.test_models_numerics import SHAPES, TINY, build, excess, run_packed, weights
from virnucpro.attention.candidates import RunsAttention, plain_attention
from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.models.base import Model
from virnucpro.models.esm2.family import ESM2_FAMILY, fused_form
from virnucpro.models.esm2.int8 import Int8ESM2, calibration_batch, in_integers, inputs_of_products
from virnucpro.models.esm2.model import ESM2, LAYER_NORM_EPS, Linear, rotary_tables
from virnucpro.models.esm2.paired import PairedESM2
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2_flash import rotate
from virnucpro.models.precision import resolve_precision
from virnucpro.storage.chunk_metadata import CALIBRATION, serves, settings_identity

if TYPE_CHECKING:
    pass

LOGGER = logging.getLogger("test")
SEQUENCES = ["MKLVWY" * 3, "ACD", "MKT" * 7]  # the interpreter is slow


@pytest.fixture
def kernels() -> ModuleType:
    """The kernels as Triton's interpreter runs them, on CPU tensors (tests/conftest.py turns it on)."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not triton.knobs.runtime.interpret:
        pytest.skip("Triton compiles for a GPU here: tests/gpu runs these kernels")
    return importlib.import_module("virnucpro.kernels.pointwise")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_number(one: Any) -> int:
    return int(one.handle.data.item()) if hasattr(one, "handle") else int(one)


@pytest.mark.parametrize("dim", [32, 72, 480])
def test_norm(kernels: ModuleType, dim: int) -> None:
    x, (offset, weight, bias) = 30 * numbers(7, dim) + 5, numbers(3, dim, seed=1)
    for eps in (1e-5, 0.5):
        expected = F.layer_norm(x + offset, (dim,), weight, bias, eps)
        found = kernels.norm(x, offset, weight, bias, eps, torch.float32)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert kernels.norm(x, offset, weight, bias, eps, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("head_dim", [16, 24, 64])
def test_rotation_of_q_and_k(kernels: ModuleType, head_dim: int) -> None:
    heads, tokens = 3, 37
    dim = heads * head_dim
    qkv, bias = numbers(tokens, 3 * dim), numbers(3 * dim, seed=1)
    cos, sin = rotary_tables(0.01 + torch.rand(head_dim // 2), torch.arange(tokens))
    q, k, _ = (qkv + bias).view(tokens, 3, heads, head_dim).unbind(1)
    expected = rotate(q * 0.3, cos, sin), rotate(k, cos, sin), qkv.view(tokens, 3, heads, head_dim)[:, 2].clone()
    kernels.rotate_qk(qkv, bias, cos, sin, heads, 0.3)
    for found, truth in zip(qkv.view(tokens, 3, heads, head_dim).unbind(1), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=0, atol=2e-6)


def test_gelu_is_the_exact_form(kernels: ModuleType) -> None:
    x = torch.linspace(-12, 12, 4096 * 3).view(3, 4096)
    bias = numbers(4096, seed=1)
    expected = F.gelu((x + bias).double())
    kernels.gelu(x, bias)
    assert float((x - expected).abs().max()) < 1e-6  # the tanh form is off by 5e-4
    unbounded = torch.tensor([[float("inf"), float("-inf"), float("nan")]])
    kernels.gelu(unbounded, torch.zeros(3))
    assert not unbounded.isfinite().any()
    narrow = numbers(5, 72)
    expected = F.gelu(narrow.double())
    kernels.gelu(narrow, torch.zeros(72))
    assert float((narrow - expected).abs().max()) < 5e-7


@pytest.mark.parametrize("outliers", [False, True], ids=["random", "stressed"])
def test_a_fused_model_errs_no_more_than_an_eager_one(
    kernels: ModuleType, outliers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    dtype = torch.float16  # the interpreter cuts bfloat16 off where a GPU rounds
    shape = SHAPES["head_dim 24"]
    state = weights(shape, outliers)
    state = {name: tensor.to(dtype).float() for name, tensor in state.items()}
    layers = [0, 1, 3, 4]
    truth = run_packed(build(state, shape), SEQUENCES, layers)
    model = build(state, shape, dtype)
    eager = run_packed(model, SEQUENCES, layers)
    with caplog.at_level(logging.INFO):
        form = fused_form(model, LOGGER)
    assert form.facts.layers_run == "fused", caplog.text
    assert "layers run fused" in caplog.text
    fused = run_packed(form, SEQUENCES, layers)
    for layer in layers:
        ours, theirs = (
            torch.cat([one[layer] - exact[layer] for one, exact in zip(found, truth, strict=True)]).norm()
            for found in (fused, eager)
        )
        assert ours <= 1.1 * theirs


def test_a_model_whose_products_end_in_what_follows_them(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Hopper; and the form goes with its last reference, because it may hold half of a GPU's memory."""
    monkeypatch.setattr("virnucpro.models.forms.capability", lambda device: (9, 0))
    monkeypatch.setattr("virnucpro.kernels.product._multiprocessors", lambda device: 2)
    wide = Architecture(layers=1, embed_dim=256, heads=4)
    state = {name: tensor.half().float() for name, tensor in weights(wide, False).items()}
    truth = run_packed(build(state, wide), SEQUENCES, [1])
    model = build(state, wide, torch.float16)
    form: Any = fused_form(model, LOGGER)
    assert form.project.func.__name__ == "rotary_in_product"
    assert form.expand.__name__ == "gelu_in_product"
    for found, plain, exact in zip(*(run_packed(one, SEQUENCES, [1]) for one in (form, model)), truth, strict=True):
        assert (found[1] - exact[1]).norm() <= 1.1 * (plain[1] - exact[1]).norm()
    last = weakref.ref(form)
    gc.disable()
    try:
        del form
        assert last() is None
    finally:
        gc.enable()


def test_kernels_that_do_not_run_leave_the_model_eager_and_say_so(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*args: Any) -> Any:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(kernels, "norm", failing)
    model = build(weights(TINY), TINY, torch.float16)
    assert fused_form(model, LOGGER) is model
    assert "the fused kernels do not run here (Failed to find C compiler): layers run eager, slower" in caplog.text


@pytest.mark.parametrize("factor", [1.02, float("nan")])
def test_kernels_that_err_are_not_trusted(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, factor: float
) -> None:
    norm: Callable[..., torch.Tensor] = kernels.norm
    monkeypatch.setattr(kernels, "norm", lambda *args: norm(*args) * factor)
    model = build(weights(TINY), TINY, torch.float16)
    assert fused_form(model, LOGGER) is model
    assert "from plain operators: layers run eager, slower" in caplog.text


@pytest.mark.parametrize(("width", "split"), [(72, 0), (320, 0), (1280, 128)])
def test_gelu_in_integers(kernels: ModuleType, width: int, split: int) -> None:
    """Within half a step, far channels too where they have two integers; what is not finite is told by its scale."""
    rows8 = importlib.import_module("virnucpro.kernels.rows8")
    x, factor = numbers(9, width) * torch.logspace(-2, 2, 9)[:, None], numbers(width, seed=1).abs() + 0.5
    x[:, : split // 2] *= 30
    found = rows8.gelu_rows(x, factor, split)
    assert float(((as_numbers(found, split) - F.gelu(x) * factor).abs() / found.scales[:, None]).max()) <= 0.505
    if split:
        assert float(found.scales[5]) < 0.3 * float(rows8.gelu_rows(x, factor, 0).scales[5])
    x[2, 3], x[4, width - 1], x[6, split] = float("inf"), float("-inf"), float("nan")
    with np.errstate(invalid="ignore"):  # the interpreter's
        scales = rows8.gelu_rows(x, factor, split).scales
    assert (~scales.isfinite()).nonzero().flatten().tolist() == [2, 4, 6]


@pytest.mark.parametrize("added", [True, False])
def test_a_norm_in_integers(kernels: ModuleType, added: bool) -> None:
    rows8 = importlib.import_module("virnucpro.kernels.rows8")
    x, more, (offset, weight, bias) = 9 * numbers(9, 72), numbers(9, 72, seed=1).half(), numbers(3, 72, seed=2)
    stream = x.clone()
    found = rows8.norm_rows(stream, more if added else None, offset, weight, bias, LAYER_NORM_EPS)
    summed = x + more.float() if added else x
    assert torch.equal(stream, summed)
    expected = F.layer_norm(summed + offset, (72,), weight, bias, LAYER_NORM_EPS)
    assert float(((as_numbers(found) - expected).abs() / found.scales[:, None]).max()) <= 0.505


@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(40, 264, 1280), (130, 72, 48)])
def test_products_of_integers_are_exact(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, tokens: int, outputs: int, inputs: int
) -> None:
    product8, rows8 = (importlib.import_module(f"virnucpro.kernels.{name}") for name in ("product8", "rows8"))
    monkeypatch.setattr(
        "virnucpro.kernels.product._multiprocessors", lambda device: 1
    )  # programs that take several tiles
    split, bias = product8.split_of(inputs), numbers(outputs, seed=2)
    x = rows8.gelu_rows(3 * numbers(tokens, inputs), torch.ones(inputs), split)
    weight = product8.weight_rows(numbers(outputs, inputs, seed=1), split)
    sums = (as_numbers(x, split) / x.scales[:, None]).double().round() @ weight.values[:, split:].double().T
    scaled = sums.float() * x.scales[:, None] * weight.scales
    for product in (product8.product_in_one, product8.product_in_two):
        assert torch.equal(product(x, weight, bias), (scaled + bias).half())
        assert torch.equal(product(x, weight), scaled.half())


@pytest.mark.parametrize("head_dim", [16, 24, 64])
def test_the_attention_kernel(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, head_dim: int) -> None:
    module = importlib.import_module("virnucpro.kernels.attention")
    # The interpreter cannot take its own numbers as the bounds of a loop with NumPy 2.4 and newer.
    monkeypatch.setattr(module, "range", lambda *bounds: range(*map(plain_number, bounds)), raising=False)
    monkeypatch.setattr(module, "BORDER", 64)  # both kinds of blocks
    lengths = (3, 40, 64, 65, 129, 1)
    segments = Segments.from_lengths(lengths)
    packed = numbers(sum(lengths), 3, 2, head_dim).half()
    q, k, v = packed.unbind(1)
    found = module.attend(q, k, v, segments.cu_seqlens, segments.extremes)
    exact = plain_attention(q, k, v, segments)
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=3e-3)
    apart = module.attend(q.contiguous(), k, v.contiguous(), segments.cu_seqlens, segments.extremes)
    torch.testing.assert_close(apart.float(), exact, rtol=0, atol=3e-3)
    slopes = torch.tensor([0.25, 0.02])
    found = module.attend(q, k, v, segments.cu_seqlens, segments.extremes, slopes)
    exact = plain_attention(q, k, v, segments, slopes)
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=3e-3)


def shorter() -> tuple[torch.Tensor, Segments]:
    """In place of the proteins that scales are derived from: the interpreter is slow."""
    tokens = torch.randint(4, 24, (120,), generator=torch.Generator().manual_seed(1))
    return tokens, Segments.from_lengths([70, 50])


def test_a_layer_in_integers_is_the_layer_but_for_their_rounding() -> None:
    """Norms, biases and the order of the hidden channels are changed so that nothing else is."""
    shape = Architecture(layers=2, embed_dim=320, heads=20)
    model = build(weights(shape), shape)

    def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
        return bool((found - expected).norm() < 0.01 * expected.norm())

    for p, seen in zip(model.parameters.layers, inputs_of_products(model, *shorter())[0], strict=True):
        assert [len(one.mean) for one in seen] == [320, 320, 1280]
        changed, eight = in_integers(p, seen)
        order = torch.cdist(changed.fc1.weight, p.fc1.weight).argmin(1)
        x, hidden = numbers(7, 320), F.gelu(numbers(7, 1280))
        qkv = changed.attention_norm(x) @ eight.qkv.rounded().T + changed.qkv.bias
        assert near(qkv, p.qkv(p.attention_norm(x)))
        fc1 = changed.final_norm(x) @ eight.fc1.rounded().T + changed.fc1.bias
        assert near(fc1, p.fc1(p.final_norm(x))[:, order])
        fc2 = (hidden * eight.factor.float()) @ eight.fc2.rounded().T + changed.fc2.bias
        assert near(fc2, F.linear(hidden, p.fc2.weight[:, order], p.fc2.bias))


def test_what_enters_each_product_is_watched_in_the_same_forward() -> None:
    model = build(weights(TINY), TINY)
    tokens, segments = calibration_batch(torch.device("cpu"))
    found, last = inputs_of_products(model, tokens, segments)
    assert torch.equal(last, model(tokens, segments, [TINY.layers])[TINY.layers])
    assert type(model.parameters.layers[0].qkv) is Linear, "the model itself is left as it was"
    entering = model.parameters.layers[0].attention_norm(model.embed(tokens, segments))
    mean, reach = found[0][0]
    assert torch.equal(mean, entering.mean(0))
    torch.testing.assert_close(reach, (entering - mean).abs().amax(0))


def test_the_proteins_that_scales_are_derived_from_are_part_of_what_a_chunk_file_says() -> None:
    text = files("virnucpro.models.esm2").joinpath("calibration.faa").read_bytes()
    assert hashlib.sha256(text).hexdigest().startswith(CALIBRATION)
    assert settings_identity(EmbeddingSettings(precision="int8"))["calibration"] == CALIBRATION
    assert "calibration" not in settings_identity(EmbeddingSettings(precision="fp16"))
    assert not serves("calibration", {}, CALIBRATION)


def test_the_form_in_integers_is_the_readable_one_in_fewer_bits(
    kernels: ModuleType,
) -> None:
    """Layers asked for alone and together."""
    shape = Architecture(layers=2, embed_dim=16, heads=1)  # the interpreter is slow
    model = build(weights(shape), shape, torch.float16)
    form = Int8ESM2(model.parameters, shape, model.attend, inputs_of_products(model, *shorter())[0])
    assert (form.facts.dtype, form.facts.layers_run) == (torch.int8, "fused int8")
    sequences = ["MKLVWY", "ACD"]
    exact, found = (run_packed(one, sequences, [0, 1, 2]) for one in (model, form))
    for layer, limit in ((0, 0.0), (1, 0.02), (2, 0.03)):
        for one, other in zip(exact, found, strict=True):
            assert (one[layer] - other[layer]).norm() <= limit * one[layer].norm()
    for layer in (1, 2):
        alone = run_packed(form, sequences, [layer])
        assert all(torch.equal(one[layer], other[layer]) for one, other in zip(alone, found, strict=True))


def test_int8_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match=r"precision int8 needs a GPU of compute capability 7\.5 or newer"):
        resolve_precision("int8", torch.device("cpu"))


def test_float32_and_the_cpu_keep_plain_operators() -> None:
    model = build(weights(TINY), TINY)
    assert fused_form(model, LOGGER) is model
    for kernels, kind in (("auto", PairedESM2), ("eager", ESM2)):
        for dtype in (torch.float32, torch.float16):
            assert type(form_on_cpu(dtype, kernels)) is kind


def form_on_cpu(dtype: torch.dtype, kernels: str) -> Model:
    return ESM2_FAMILY.build(
        weights(TINY), TINY, RunsAttention, device=torch.device("cpu"), dtype=dtype, kernels=kernels, logger=LOGGER
    )


def test_int8_without_fused_kernels_is_refused() -> None:
    with pytest.raises(UserError, match="precision int8 is computed by fused kernels alone"):
        form_on_cpu(torch.int8, "eager")


def test_layers_asked_for_do_not_change_with_later_ones(kernels: ModuleType) -> None:
    """The fused stream is changed in place: what was handed out must be a copy."""
    model = build(weights(TINY), TINY, torch.float16)
    form = fused_form(model, LOGGER)
    assert form.facts.layers_run == "fused"
    together = run_packed(form, SEQUENCES, [0, 1, 2, 3])
    for layer in (0, 1, 2, 3):
        own = [{layer: one[layer]} for one in together]
        assert excess(run_packed(form, SEQUENCES, [layer]), own, {layer: 1e-6}) <= 1
