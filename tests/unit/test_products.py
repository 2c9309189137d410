"""Products that end in GELU, a gated GELU or rotary: in Triton's interpreter here, on a GPU in tests/gpu."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from virnucpro.models.esm2.model import rotary_tables
from virnucpro.models.esm2_flash import rotate
from virnucpro.models.forms import belongs_in_product


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernels as Triton's interpreter runs them, on CPU tensors (tests/conftest.py turns it on)."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not triton.knobs.runtime.interpret:
        pytest.skip("Triton compiles for a GPU here: tests/gpu runs these kernels")
    module = importlib.import_module("virnucpro.kernels.product")
    monkeypatch.setattr(module, "_multiprocessors", lambda device: 2)  # programs that share the tiles
    return module


@pytest.mark.parametrize(("tokens", "depth", "width"), [(1, 72, 200), (130, 64, 256), (300, 136, 520)])
def test_gelu_of_a_product(kernels: ModuleType, tokens: int, depth: int, width: int) -> None:
    x, weight, bias = numbers(tokens, depth).half(), numbers(width, depth, seed=1).half(), numbers(width, seed=2).half()
    expected = F.gelu(x.float() @ weight.float().T + bias.float())
    torch.testing.assert_close(kernels.gelu_product(x, weight, bias).float(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("tokens", "head_dim"), [(1, 64), (130, 64), (130, 16), (7, 128)])
def test_rotary_in_a_product(kernels: ModuleType, tokens: int, head_dim: int) -> None:
    dim = 256
    x, weight = numbers(tokens, dim).half(), numbers(3 * dim, dim, seed=1).half() / 16
    bias = numbers(3 * dim, seed=2).half()
    cos, sin = rotary_tables(0.01 + torch.rand(head_dim // 2), torch.arange(tokens))
    q, k, v = (x.float() @ weight.float().T).view(tokens, 3, -1, head_dim).unbind(1)
    add = bias.float().view(3, -1, head_dim)
    expected = torch.stack([rotate((q + add[0]) * 0.3, cos, sin), rotate(k + add[1], cos, sin), v], dim=1)
    found = kernels.rotary_product(x, weight, bias, cos, sin, 0.3)
    torch.testing.assert_close(found.float().view(expected.shape), expected, rtol=1e-3, atol=1e-4)


def test_a_product_whose_q_ends_within_a_tile_is_refused(kernels: ModuleType) -> None:
    tables = torch.ones(5, 1, 8), torch.zeros(5, 1, 8)
    with pytest.raises(ValueError, match="q of 320 channels does not end where a tile of 256 ends"):
        kernels.rotary_product(numbers(5, 320).half(), numbers(960, 320).half(), numbers(960), *tables, 1.0)


@pytest.mark.parametrize(("tokens", "width"), [(1, 128), (130, 384)])
def test_a_gated_product(kernels: ModuleType, tokens: int, width: int) -> None:
    x, weight = numbers(tokens, 72).half(), numbers(2 * width, 72, seed=1).half()
    gate, up = (x.float() @ weight.float().T).chunk(2, dim=1)
    found = kernels.gated_product(x, kernels.gated_rows(weight))
    torch.testing.assert_close(found.float(), F.gelu(gate) * up, rtol=1e-3, atol=1e-4)


def test_a_gated_product_of_another_width_is_refused(kernels: ModuleType) -> None:
    with pytest.raises(ValueError, match="128 at a time"):
        kernels.gated_rows(numbers(2 * 72, 8))


@pytest.mark.parametrize(
    ("capability", "factor", "expected"), [((9, 0), 1.0, True), ((8, 0), 1.0, False), ((9, 0), 1.02, False)]
)
def test_what_follows_is_taken_into_the_product_where_it_agrees(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], factor: float, expected: bool
) -> None:
    monkeypatch.setattr("virnucpro.models.forms.capability", lambda device: capability)
    weight = numbers(16, 8).half()
    assert belongs_in_product(lambda y: F.linear(y, weight) * factor, lambda y: F.linear(y, weight), weight) is expected


def test_a_product_that_does_not_run_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(y: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such descriptor")

    monkeypatch.setattr("virnucpro.models.forms.capability", lambda device: (9, 0))
    weight = numbers(16, 8).half()
    assert not belongs_in_product(failing, lambda y: F.linear(y, weight), weight)
