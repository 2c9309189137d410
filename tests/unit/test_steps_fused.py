"""Fused forms: the kernels run in Triton's interpreter here, on a GPU in tests/gpu; and the choice of a form."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.oracle import random_protein
from tests.unit.test_models_numerics import SHAPES, TINY, build, excess, run_packed, weights
from virnucpro.attention.choose import plain_attention
from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.kernels.float8 import Scaled
from virnucpro.models.esm2.float8 import (
    Float8ESM2,
    calibration_batch,
    corrected,
    mean_inputs,
    products_of,
    with_products,
)
from virnucpro.models.esm2.forms import fastest_form, fused_form
from virnucpro.models.esm2.model import ESM2, LAYER_NORM_EPS, Linear, rotary_tables
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2_flash import rotate
from virnucpro.models.precision import resolve_precision

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


@pytest.mark.parametrize("dim", [72, 320])
def test_kernels_that_end_in_float8(kernels: ModuleType, dim: int) -> None:
    """Scales exactly, values roughly: the interpreter loses the carry of some roundings; tests/gpu has the limit."""
    float8 = importlib.import_module("virnucpro.kernels.float8")
    x = numbers(9, dim) * torch.logspace(-3, 3, 9)[:, None]
    added, (offset, weight, bias) = numbers(9, dim, seed=1).bfloat16(), numbers(3, dim, seed=2)
    summed = x + added.float()
    stream = x.clone()
    cases = {
        "rows": (float8.scaled_rows(x), x),
        "gelu": (float8.gelu(x, bias), F.gelu(x + bias)),
        "add_norm": (
            float8.add_norm(stream, added, offset, weight, bias, LAYER_NORM_EPS),
            F.layer_norm(summed + offset, (dim,), weight, bias, LAYER_NORM_EPS),
        ),
    }
    torch.testing.assert_close(stream, summed)
    for (values, scales), expected in cases.values():
        torch.testing.assert_close(scales, expected.abs().amax(1, keepdim=True) / 448, rtol=1e-4, atol=1e-9)
        distance = (values.float() * scales - expected).norm(dim=1)
        assert (distance <= 0.15 * expected.norm(dim=1)).all()


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


def test_biases_corrected_for_float8_bring_pooled_vectors_nearer() -> None:
    """With torch's own rounding, on proteins that the correction was not made with."""
    shape = Architecture(layers=6, embed_dim=128, heads=4)
    model = build(weights(shape), shape)

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        scale = weight.abs().amax(1, keepdim=True) / 448
        return (weight / scale).to(torch.float8_e4m3fn).float() * scale

    def coarse(products: Sequence[Linear]) -> list[Linear]:
        return [replace(one, weight=rounded(one.weight)) for one in products]

    def better(products: Sequence[Linear], means: Sequence[torch.Tensor]) -> list[Linear]:
        return coarse([corrected(one, rounded(one.weight), mean) for one, mean in zip(products, means, strict=True)])

    layers = model.parameters.layers
    plain = [with_products(p, coarse(products_of(p))) for p in layers]
    made_up = [
        with_products(p, better(products_of(p), means)) for p, means in zip(layers, mean_inputs(model), strict=True)
    ]
    sequences = [random_protein(length, length) for length in (60, 200, 350)]
    exact = run_packed(model, sequences, [6])
    errors = []
    for changed in (plain, made_up):
        other = ESM2(replace(model.parameters, layers=tuple(changed)), shape, model.attend)
        found = run_packed(other, sequences, [6])
        errors.append(sum(float((a[6].mean(0) - b[6].mean(0)).norm()) for a, b in zip(found, exact, strict=True)))
    assert errors[1] < 0.7 * errors[0]


def test_what_enters_each_product_is_watched_in_the_same_forward() -> None:
    model = build(weights(TINY), TINY)
    found = mean_inputs(model)
    assert [[len(mean) for mean in means] for means in found] == [[32, 32, 32, 128]] * TINY.layers
    assert type(model.parameters.layers[0].qkv) is Linear, "the model itself is left as it was"
    tokens, segments = calibration_batch(torch.device("cpu"))
    entering = model.parameters.layers[0].attention_norm(model.embed(tokens, segments))
    assert torch.equal(found[0][0], entering.mean(0))


def test_the_float8_form_is_the_readable_one_in_fewer_bits(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it but torch's scaled product, which a CPU may lack; layers asked for alone and together."""

    def product(a: Scaled, weight: Scaled) -> torch.Tensor:
        return ((a[0].float() * a[1]) @ (weight[0].float() * weight[1]).T).bfloat16()

    monkeypatch.setattr(importlib.import_module("virnucpro.models.esm2.float8"), "scaled_product", product)
    shape = Architecture(layers=3, embed_dim=16, heads=1)  # the interpreter is slow
    model = build(weights(shape), shape, torch.bfloat16)
    form = Float8ESM2(model.parameters, shape, model.attend)
    assert form.facts.dtype == torch.float8_e4m3fn
    assert (form.facts.layers_run, form.first) == ("fused fp8", 1)
    sequences = ["MKLVWY", "ACD"]
    exact, found = (run_packed(one, sequences, [0, 1, 2, 3]) for one in (model, form))
    for layer, limit in ((0, 0.0), (1, 0.01), (2, 0.1), (3, 0.1)):
        for one, other in zip(exact, found, strict=True):
            assert (one[layer] - other[layer]).norm() <= limit * one[layer].norm()
    for layer in (2, 3):
        alone = run_packed(form, sequences, [layer])
        assert all(torch.equal(one[layer], other[layer]) for one, other in zip(alone, found, strict=True))


def test_float8_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match=r"precision fp8 needs a GPU of compute capability 8\.9 or newer"):
        resolve_precision("fp8", torch.device("cpu"))


def test_float32_and_the_cpu_keep_plain_operators() -> None:
    model = build(weights(TINY), TINY)
    assert fused_form(model, LOGGER) is model
    for dtype in (torch.float32, torch.float16):
        form = fastest_form(model.parameters, TINY, model.attend, dtype=dtype, kernels="auto", logger=LOGGER)
        assert type(form) is ESM2


def test_float8_without_fused_kernels_is_refused() -> None:
    model = build(weights(TINY), TINY, torch.bfloat16)
    with pytest.raises(UserError, match="precision fp8 is computed by fused kernels alone"):
        fastest_form(model.parameters, TINY, model.attend, dtype=torch.float8_e4m3fn, kernels="eager", logger=LOGGER)


def test_layers_asked_for_do_not_change_with_later_ones(kernels: ModuleType) -> None:
    """The fused stream is changed in place: what was handed out must be a copy."""
    model = build(weights(TINY), TINY, torch.float16)
    form = fused_form(model, LOGGER)
    assert form.facts.layers_run == "fused"
    together = run_packed(form, SEQUENCES, [0, 1, 2, 3])
    for layer in (0, 1, 2, 3):
        own = [{layer: one[layer]} for one in together]
        assert excess(run_packed(form, SEQUENCES, [layer]), own, {layer: 1e-6}) <= 1
