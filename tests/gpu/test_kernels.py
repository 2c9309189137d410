"""Every attention on a real GPU against plain mathematics, and the choice among them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from virnucpro.attention.candidates import (
    BucketedAttention,
    EfficientAttention,
    FlashOperatorAttention,
    FlashRunsAttention,
    RunsAttention,
    TritonAttention,
    VarlenAttention,
)
from virnucpro.attention.choose import TOLERANCE, choose_attention, plain_attention, try_attention
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
