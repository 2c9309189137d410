"""Fused steps: the kernels run in Triton's interpreter here, on a GPU in tests/gpu; and the choice of steps."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.oracle import random_protein
from tests.unit.test_models_numerics import TINY, build, excess, run_packed, weights
from virnucpro.attention.choose import plain_attention
from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.engine.load import choose_steps, use_fused_steps
from virnucpro.models.esm2.float8 import corrected, mean_inputs
from virnucpro.models.esm2.model import EagerSteps, LayerParameters, rotary_tables, rotate
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.precision import resolve_precision

LOGGER = logging.getLogger("test")
SEQUENCES = ["MKLVWY" * 3, "ACD"]  # the interpreter is slow
NARROW = Architecture(layers=2, embed_dim=48, heads=2)
ONE_LAYER = Architecture(layers=1, embed_dim=32, heads=2)


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
    expected = F.layer_norm(x + offset, (dim,), weight, bias, 1e-5)
    torch.testing.assert_close(kernels.norm(x, offset, weight, bias, torch.float32), expected, rtol=1e-5, atol=1e-5)
    assert kernels.norm(x, offset, weight, bias, torch.bfloat16).dtype == torch.bfloat16


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
    shape = NARROW
    state = weights(shape, outliers)
    state = {name: tensor.to(dtype).float() for name, tensor in state.items()}
    layers = [0, 1, 2]
    truth = run_packed(build(state, shape), SEQUENCES, layers)
    model = build(state, shape, dtype)
    eager = run_packed(model, SEQUENCES, layers)
    with caplog.at_level(logging.INFO):
        assert use_fused_steps(model, LOGGER), caplog.text
    assert model.steps.name == "fused"
    assert "layers run fused" in caplog.text
    fused = run_packed(model, SEQUENCES, layers)
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
    model = build(weights(ONE_LAYER), ONE_LAYER, torch.float16)
    assert not use_fused_steps(model, LOGGER)
    assert model.steps.name == "eager"
    assert "the fused kernels do not run here (Failed to find C compiler): layers run eager, slower" in caplog.text


@pytest.mark.parametrize("factor", [1.02, float("nan")])
def test_kernels_that_err_are_not_trusted(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, factor: float
) -> None:
    norm: Callable[..., torch.Tensor] = kernels.norm
    monkeypatch.setattr(kernels, "norm", lambda *args: norm(*args) * factor)
    model = build(weights(ONE_LAYER), ONE_LAYER, torch.float16)
    assert not use_fused_steps(model, LOGGER)
    assert model.steps.name == "eager"
    assert "from plain operators: layers run eager, slower" in caplog.text


@pytest.mark.parametrize("dim", [72, 320])
def test_kernels_that_end_in_float8(kernels: ModuleType, dim: int) -> None:
    """Scales exactly, values roughly: the interpreter loses the carry of some roundings; tests/gpu has the limit."""
    float8 = importlib.import_module("virnucpro.kernels.float8")
    x = numbers(9, dim) * torch.logspace(-3, 3, 9)[:, None]
    addend, (offset, weight, bias) = numbers(9, dim, seed=1).bfloat16(), numbers(3, dim, seed=2)
    summed = x + addend.float()
    stream = x.clone()
    cases = {
        "rows": (float8.rows(x), x),
        "gelu": (float8.gelu(x, bias), F.gelu(x + bias)),
        "add_norm": (
            float8.add_norm(stream, addend, offset, weight, bias),
            F.layer_norm(summed + offset, (dim,), weight, bias, 1e-5),
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
    lengths = (3, 40, 64, 65, 129, 1)
    segments = Segments.from_lengths(lengths)
    packed = numbers(sum(lengths), 3, 2, head_dim).half()
    q, k, v = packed.unbind(1)
    found = module.attend(q, k, v, segments.cu_seqlens, max(lengths))
    exact = plain_attention(q, k, v, segments)
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=3e-3)
    apart = module.attend(q.contiguous(), k, v.contiguous(), segments.cu_seqlens, max(lengths))
    torch.testing.assert_close(apart.float(), exact, rtol=0, atol=3e-3)


def test_biases_corrected_for_float8_bring_pooled_vectors_nearer() -> None:
    """With torch's own rounding, on proteins that the correction was not made with."""
    shape = Architecture(layers=6, embed_dim=128, heads=4)
    model = build(weights(shape), shape)

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        scale = weight.abs().amax(1, keepdim=True) / 448
        return (weight / scale).to(torch.float8_e4m3fn).float() * scale

    def coarse(p: LayerParameters) -> LayerParameters:
        names = ("qkv_weight", "out_weight", "fc1_weight", "fc2_weight")
        return p._replace(**{name: rounded(getattr(p, name)) for name in names})

    means = mean_inputs(model)
    plain = [coarse(p) for p in model.parameters.layers]
    better = [
        coarse(corrected(p, (q.qkv_weight, q.out_weight, q.fc1_weight, q.fc2_weight), mean))
        for p, q, mean in zip(model.parameters.layers, plain, means, strict=True)
    ]
    sequences = [random_protein(length, length) for length in (60, 200, 350)]
    exact = run_packed(model, sequences, [6])
    errors = []
    for layers in (plain, better):
        model.steps = EagerSteps(model.parameters._replace(layers=tuple(layers)), shape.heads, model.q_scale)
        found = run_packed(model, sequences, [6])
        errors.append(sum(float((a[6].mean(0) - b[6].mean(0)).norm()) for a, b in zip(found, exact, strict=True)))
    assert errors[1] < 0.7 * errors[0]


def test_float8_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match=r"precision fp8 needs a GPU of compute capability 8\.9 or newer"):
        resolve_precision("fp8", torch.device("cpu"))


def test_float32_and_the_cpu_keep_plain_operators() -> None:
    model = build(weights(TINY), TINY)
    assert not use_fused_steps(model, LOGGER)
    choose_steps(model, torch.float32, LOGGER)
    assert model.steps.name == "eager"


def test_layers_asked_for_do_not_change_with_later_ones(kernels: ModuleType) -> None:
    """The fused stream is changed in place: what was handed out must be a copy."""
    model = build(weights(NARROW), NARROW, torch.float16)
    assert use_fused_steps(model, LOGGER)
    together = run_packed(model, SEQUENCES, [0, 1, 2])
    for layer in (0, 1):
        own = [{layer: one[layer]} for one in together]
        assert excess(run_packed(model, SEQUENCES, [layer]), own, {layer: 1e-6}) <= 1
