"""Every attention on a real GPU against plain mathematics, and the choice among them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from virnucpro.attention.candidates import (
    TOLERANCE,
    BucketedAttention,
    EfficientAttention,
    FlashOperatorAttention,
    FlashRunsAttention,
    RunsAttention,
    TritonAttention,
    VarlenAttention,
    choose_attention,
    plain_attention,
    try_attention,
)
from virnucpro.attention.segments import Segments
from virnucpro.cuda.attention_utils import (
    FLASH,
    STANDARD,
    attention_support,
    configure_flash_attention,
    get_attention_implementation,
)
from virnucpro.models.precision import exact_products

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]

HEAD_DIMS = (16, 24, 32, 64, 128)  # of the six released models
HALVES = (torch.float16, torch.bfloat16)


def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def ampere() -> bool:
    return torch.cuda.get_device_capability() >= (8, 0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("make", [TritonAttention, VarlenAttention, FlashOperatorAttention, FlashRunsAttention])
def test_flash_kernels_agree_with_mathematics(make: Any, head_dim: int, dtype: torch.dtype) -> None:
    if not ampere():
        pytest.skip("FlashAttention-2 needs compute capability 8.0")
    try:
        make()
    except ImportError:
        pytest.skip("this torch has no varlen_attn")
    assert try_attention(make, cuda(), dtype, head_dim) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("make", [EfficientAttention, BucketedAttention, RunsAttention])
def test_standard_kernels_agree_with_mathematics(make: Any, head_dim: int, dtype: torch.dtype) -> None:
    with exact_products():
        assert try_attention(make, cuda(), dtype, head_dim) is None


@pytest.mark.parametrize("dtype", HALVES)
def test_our_kernel_over_many_lengths_beside_torchs(dtype: torch.dtype) -> None:
    """Lengths around every border of a block; a neighbour that is not finite does not reach over it."""
    if not ampere():
        pytest.skip("FlashAttention-2 needs compute capability 8.0")
    lengths = [1, 2, 63, 64, 65, 127, 128, 129, 168, 1024, 2002, 5]
    segments = Segments.from_lengths(lengths, cuda())
    packed = torch.randn(sum(lengths), 3, 20, 64, generator=torch.Generator().manual_seed(0)).to(cuda(), dtype)
    packed[:, 0] *= 0.125
    packed[-5:] = float("nan")
    q, k, v = packed.unbind(1)
    exact = plain_attention(q, k, v, segments)[:-5]
    found = TritonAttention()(q, k, v, segments)[:-5]
    theirs = FlashOperatorAttention()(q, k, v, segments)[:-5]
    assert (found - exact).norm() <= 1.05 * (theirs - exact).norm()
    assert float((found - exact).abs().max()) <= TOLERANCE[dtype]


def alibi_slopes(heads: int) -> torch.Tensor:
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("head_dim", [24, 64, 128])
def test_our_kernel_takes_slopes(head_dim: int, dtype: torch.dtype) -> None:
    if not ampere():
        pytest.skip("FlashAttention-2 needs compute capability 8.0")
    assert try_attention(TritonAttention, cuda(), dtype, head_dim, alibi_slopes(12)) is None
    lengths = [1, 2, 63, 64, 65, 127, 128, 129, 168, 1024, 2002, 5]
    segments = Segments.from_lengths(lengths, cuda())
    packed = torch.randn(sum(lengths), 3, 12, head_dim, generator=torch.Generator().manual_seed(0)).to(cuda(), dtype)
    packed[:, 0] *= head_dim**-0.5
    packed[-5:] = float("nan")
    q, k, v = packed.unbind(1)
    slopes = alibi_slopes(12).to(cuda())
    exact = plain_attention(q, k, v, segments, slopes)[:-5]
    found = TritonAttention()(q, k, v, segments, slopes)[:-5]
    plain = TritonAttention()(q, k, v, segments)[:-5]
    without = plain_attention(q, k, v, segments)[:-5]
    assert float((found - exact).abs().max()) <= TOLERANCE[dtype]
    # Sharper attention averages fewer values: they are larger, and so is what is rounded of them.
    assert (found - exact).norm() / exact.norm() <= 1.2 * (plain - without).norm() / without.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("make", [BucketedAttention, RunsAttention])
def test_standard_attention_takes_slopes(make: Any, dtype: torch.dtype) -> None:
    with exact_products():
        assert try_attention(make, cuda(), dtype, 64, alibi_slopes(12)) is None


def test_the_choice_with_slopes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        half = choose_attention(cuda(), torch.float16, 64, logging.getLogger("t"), slopes=alibi_slopes(12))
        full = choose_attention(cuda(), torch.float32, 64, logging.getLogger("t"), slopes=alibi_slopes(12))
    assert half.name == ("triton_flash" if ampere() else "sdpa_bucketed"), caplog.text
    assert full.name == "sdpa_bucketed"


def test_the_probe_and_the_choice_on_this_gpu(caplog: pytest.LogCaptureFixture) -> None:
    implementation = get_attention_implementation()
    assert implementation == (FLASH if ampere() else STANDARD), attention_support().reason
    with caplog.at_level(logging.INFO):
        half = choose_attention(cuda(), torch.float16, 64, logging.getLogger("t"))
        full = choose_attention(cuda(), torch.float32, 64, logging.getLogger("t"))
    assert half.implementation == implementation
    assert full.implementation == STANDARD
    assert len(caplog.messages) == 2
    assert torch.cuda.get_device_name() in caplog.messages[0]


def test_a_transformers_like_model_is_configured_for_this_gpu() -> None:
    model: Any = configure_flash_attention(torch.nn.Linear(8, 8).cuda().half())
    assert model.config.use_flash_attention_2 == ampere()
