"""Every packed attention against its formula, and the choice among them with capabilities that we lack."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.attention import candidates as candidates_module
from virnucpro.attention.candidates import (
    BucketedAttention,
    EfficientAttention,
    FlashOperatorAttention,
    FlashRunsAttention,
    RunsAttention,
    VarlenAttention,
    choose_attention,
    plain_attention,
    try_attention,
)
from virnucpro.attention.segments import Segments
from virnucpro.cuda.attention_utils import FLASH, STANDARD, AttentionSupport

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
LOGGER = logging.getLogger("test")


@pytest.mark.parametrize("make", [RunsAttention, FlashRunsAttention, BucketedAttention])
@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12), seed=st.integers(0, 100))
def test_attention_stays_within_each_sequence(make: Any, lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(sum(lengths), 3, 2, 8, generator=generator).unbind(1)
    segments = Segments.from_lengths(lengths)
    torch.testing.assert_close(make()(q, k, v, segments), plain_attention(q, k, v, segments), rtol=2e-6, atol=2e-6)


SLOPES = torch.tensor([0.5, 0.03])


@pytest.mark.parametrize("make", [RunsAttention, BucketedAttention])
@pytest.mark.parametrize("lengths", [[1], [7, 7, 7], [60, 60, 59, 57, 20, 3]])
def test_slopes_lower_logits_by_distance(make: Any, lengths: list[int]) -> None:
    q, k, v = torch.randn(sum(lengths), 3, 2, 8, generator=torch.Generator().manual_seed(0)).unbind(1)
    segments = Segments.from_lengths(lengths)
    found = make()(q, k, v, segments, SLOPES)
    torch.testing.assert_close(found, plain_attention(q, k, v, segments, SLOPES), rtol=2e-6, atol=2e-6)
    assert (len(lengths) == 1) == torch.equal(found, make()(q, k, v, segments))


def test_slopes_by_a_formula_written_out() -> None:
    q, k, v = torch.randn(5, 3, 2, 8, generator=torch.Generator().manual_seed(0)).unbind(1)
    found = plain_attention(q, k, v, Segments.from_lengths([5]), SLOPES)
    for head in range(2):
        for i in range(5):
            logits = [float(q[i, head] @ k[j, head]) - float(SLOPES[head]) * abs(i - j) for j in range(5)]
            shares = torch.tensor(logits).softmax(0)
            torch.testing.assert_close(found[i, head], shares @ v[:, head], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("make", [RunsAttention, BucketedAttention])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_trial_passes_slopes_that_are_right(make: Any, dtype: torch.dtype) -> None:
    assert try_attention(make, CPU, dtype, 64, SLOPES) is None


class Slopeless(RunsAttention):
    name = "slopeless"

    def __call__(self, q: Any, k: Any, v: Any, segments: Segments, slopes: Any = None) -> Any:
        return super().__call__(q, k, v, segments)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (FlashRunsAttention, "sdpa_flash_runs does not run (it takes no slopes)"),
        (FlashOperatorAttention, "flash_operator does not run (it takes no slopes)"),
        (EfficientAttention, "efficient_attention does not run (it takes no slopes)"),
        (Slopeless, "slopeless disagrees with plain mathematics"),
    ],
)
def test_the_trial_refuses_who_takes_no_slopes(make: Any, says: str) -> None:
    assert says in str(try_attention(make, CPU, torch.float32, 16, SLOPES))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 24, 32, 64, 128])
@pytest.mark.parametrize("make", [RunsAttention, BucketedAttention])
def test_the_trial_passes_what_is_right(make: Any, head_dim: int, dtype: torch.dtype) -> None:
    assert try_attention(make, CPU, dtype, head_dim) is None


class Wrong(RunsAttention):
    name = "wrong"

    def __call__(self, q: Any, k: Any, v: Any, segments: Segments, slopes: Any = None) -> Any:
        return super().__call__(q, k, v, segments, slopes) * 1.05


class NotANumber(RunsAttention):
    name = "nan"

    def __call__(self, q: Any, k: Any, v: Any, segments: Segments, slopes: Any = None) -> Any:
        return super().__call__(q, k, v, segments, slopes) * float("nan")


class Broken(RunsAttention):
    name = "broken"

    def __call__(self, q: Any, k: Any, v: Any, segments: Segments, slopes: Any = None) -> Any:
        raise RuntimeError("CUDA error: no kernel image is available for execution. A long story follows")


class Absent(RunsAttention):
    name = "absent"

    def __init__(self) -> None:
        raise ImportError("No module named 'torch.nn.attention.varlen'")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Wrong, "wrong disagrees"),
        (NotANumber, "nan disagrees"),
        (Broken, "broken does not run (CUDA error: no kernel image is available for execution)"),
        (Absent, "absent does not run (No module named"),
    ],
)
def test_the_trial_refuses_what_is_wrong(make: Any, says: str) -> None:
    refusal = try_attention(make, CPU, torch.float16, 16)
    assert refusal is not None
    assert says in refusal


def test_a_varlen_function_without_scale_gets_unscaled_queries() -> None:
    """torch 2.10's signature, computed by its formula."""

    def old(q: Any, k: Any, v: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int) -> Any:
        assert max_q == max_k == 129
        lengths = cu_seq_q.diff().tolist()
        return plain_attention(q * q.shape[-1] ** -0.5, k, v, Segments.from_lengths(lengths)).to(q.dtype)

    def new(*args: Any, scale: float | None = None) -> Any:
        assert scale == 1.0
        return old(args[0] * args[0].shape[-1] ** 0.5, *args[1:])

    assert VarlenAttention(old).scales
    assert not VarlenAttention(new).scales
    assert try_attention(lambda: VarlenAttention(old), CPU, torch.float16, 24) is None
    assert try_attention(lambda: VarlenAttention(new), CPU, torch.float16, 24) is None


def use(monkeypatch: pytest.MonkeyPatch, support: AttentionSupport, flash: list[Any], standard: list[Any]) -> None:
    """Pretend a GPU with this support; its kernels run on the CPU."""
    monkeypatch.setattr(candidates_module, "attention_support", lambda device: support)
    monkeypatch.setattr(candidates_module, "FLASH_CHOICES", tuple(flash))
    monkeypatch.setattr(candidates_module, "STANDARD_CHOICES", tuple(standard))
    trial = try_attention
    monkeypatch.setattr(candidates_module, "try_attention", lambda make, device, *args: trial(make, CPU, *args))


class GoodFlash(RunsAttention):
    name = "good_flash"
    implementation = FLASH


class GoodEfficient(RunsAttention):
    name = "good_efficient"


AMPERE = AttentionSupport(FLASH, "NVIDIA A100, compute capability 8.0; probe agrees to 0.001", 0.001)
TURING = AttentionSupport(STANDARD, "Tesla T4, compute capability 7.5; FlashAttention-2 needs 8.0 or newer")


@pytest.mark.parametrize(
    ("support", "dtype", "flash", "chosen"),
    [
        (AMPERE, torch.float16, [GoodFlash], "good_flash"),
        (AMPERE, torch.bfloat16, [Absent, GoodFlash], "good_flash"),
        (AMPERE, torch.float16, [Absent, Wrong], "good_efficient"),
        (AMPERE, torch.float32, [GoodFlash], "good_efficient"),
        (TURING, torch.float16, [GoodFlash], "good_efficient"),
    ],
)
def test_the_choice_takes_the_first_that_agrees(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    support: AttentionSupport,
    dtype: torch.dtype,
    flash: list[Any],
    chosen: str,
) -> None:
    use(monkeypatch, support, flash, [GoodEfficient])
    with caplog.at_level(logging.INFO):
        found = choose_attention(CUDA, dtype, 64, LOGGER)
    assert found.name == chosen
    flash_runs = chosen == "good_flash"
    assert found.implementation == (FLASH if flash_runs else STANDARD)
    assert len(caplog.messages) == 1
    assert ("FlashAttention-2: enabled" in caplog.text) == flash_runs
    assert ("Using standard attention" in caplog.text) == (not flash_runs)
    assert f"running {chosen}" in caplog.text
    for make in flash:
        if make in (Absent, Wrong):
            assert make.name in caplog.text, "what was refused is told, and why"
    if dtype == torch.float32:
        assert "flash computes no float32" in caplog.text


def test_with_slopes_those_are_passed_over_that_take_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, AMPERE, [FlashRunsAttention, FlashOperatorAttention], [EfficientAttention, BucketedAttention])
    with caplog.at_level(logging.INFO):
        found = choose_attention(CUDA, torch.float16, 64, LOGGER, slopes=SLOPES)
    assert isinstance(found, BucketedAttention)
    assert caplog.text.count("takes no slopes") == 3
    assert "running sdpa_bucketed" in caplog.text


def test_padded_attention_is_left_when_everything_else_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, AMPERE, [Absent, Broken], [Broken, Wrong])
    with caplog.at_level(logging.INFO):
        found = choose_attention(CUDA, torch.float16, 64, LOGGER)
    assert isinstance(found, BucketedAttention)
    assert "Using standard attention" in caplog.text


def test_the_cpu_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = choose_attention(CPU, torch.float32, 64, LOGGER)
    assert isinstance(found, RunsAttention)
    assert caplog.messages == ["Using standard attention (the device is the CPU)"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("make", [VarlenAttention, FlashOperatorAttention, EfficientAttention])
def test_the_gpu_kernels_are_called_as_this_torch_declares_them(make: Any, dtype: torch.dtype) -> None:
    """torch's own shape rules run the calls on the meta device, where no kernel is needed."""
    try:
        attention = make()
    except ImportError:
        pytest.skip("this torch has no varlen_attn")
    q, k, v = torch.empty(57, 3, 4, 16, dtype=dtype, device="meta").unbind(1)
    segments = Segments.from_lengths([20, 30, 7], "meta")
    out = attention(q, k, v, segments)
    assert (out.shape, out.dtype) == (q.shape, dtype)
