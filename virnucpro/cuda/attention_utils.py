"""Which attention a GPU can run, found out by running it.

FlashAttention-2 (Dao 2023, arXiv:2307.08691) is in PyTorch's own wheel for CUDA devices of compute
capability 8.0 (Ampere) or newer. Capability alone does not prove that the kernel works with the
driver, the build and the container at hand; so a small call is made and compared with plain mathematics.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from virnucpro.cuda import AMPERE

FLASH = "flash_attention_2"
STANDARD = "standard_attention"

PROBE_TOLERANCE = 5e-3
"""Largest difference that float16 rounding can explain on the probe's values of unit variance."""

Device = torch.device | str | int | None
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class AttentionSupport:
    """What a device runs and why.

    Attributes:
        implementation: "flash_attention_2" or "standard_attention".
        reason: for the log, without a full stop.
        difference: largest difference between flash and math in the probe; None where it did not run.
    """

    implementation: str
    reason: str
    difference: float | None = None

    @property
    def flash(self) -> bool:
        return self.implementation == FLASH


def attention_support(device: Device = None) -> AttentionSupport:
    """Ask one device; whatever is wrong with it becomes the reason, never an exception.

    Args:
        device: a CUDA device; None is the current one; the CPU is an answer too.
    """
    try:
        return _ask(device)
    except Exception as error:
        return AttentionSupport(STANDARD, f"the GPU cannot be asked: {first_sentence(error)}")


def get_attention_implementation(device: Device = None) -> str:
    """ "flash_attention_2" where the device runs it (see :func:`attention_support`), else "standard_attention"."""
    return attention_support(device).implementation


def is_flash_attention_available(device: Device = None) -> bool:
    """Whether the device runs FlashAttention-2."""
    return get_attention_implementation(device) == FLASH


def configure_flash_attention(model: Model, logger: logging.Logger | None = None, *, device: Device = None) -> Model:
    """Tell a model's configuration, and the log, which attention its device runs.

    Sets ``model.config._attn_implementation`` to "sdpa", under which transformers' models reach
    the flash kernel, and ``model.config.use_flash_attention_2``; a model without a configuration, as
    fair-esm's are, gets one. That alone changes nothing in fair-esm's ESM-2, whose forward never calls
    ``scaled_dot_product_attention``: :class:`virnucpro.models.ESM2WithFlashAttention` does that.

    Args:
        model: on the device that it will run on, and in its dtype.
        logger: where the line goes; None is this module's logger.
        device: that the model will run on; None is the device of a model on a GPU, else the current GPU.

    Returns:
        The model itself.
    """
    logger = logger or logging.getLogger(__name__)
    parameter = next(model.parameters(), None)
    if device is None and parameter is not None and parameter.is_cuda:
        device = parameter.device
    support = attention_support(device)
    if parameter is not None and parameter.dtype == torch.float32:
        support = in_float32(support)
    config: Any = getattr(model, "config", None)
    if config is None:
        config = SimpleNamespace()
        model.config = config
    if support.flash:
        config._attn_implementation = "sdpa"
    config.use_flash_attention_2 = support.flash
    log_attention(logger, support)
    return model


def in_float32(support: AttentionSupport) -> AttentionSupport:
    """What a device runs for a model in float32, which FlashAttention-2 does not compute."""
    if not support.flash:
        return support
    reason = f"{support.reason}; flash computes no float32: float16 and bfloat16 run with it"
    return replace(support, implementation=STANDARD, reason=reason)


def log_attention(logger: logging.Logger, support: AttentionSupport) -> None:
    """One line: ``FlashAttention-2: enabled`` or ``Using standard attention``, and why."""
    text = "FlashAttention-2: enabled (%s)" if support.flash else "Using standard attention (%s)"
    logger.info(text, support.reason)


def run_probe(device: torch.device) -> tuple[Tensor, Tensor]:
    """The same small attention by the flash kernel alone, in float16, and by plain mathematics, in float32.

    Returns:
        Two float32 tensors ``(1, 4, 96, 64)``.

    Raises:
        RuntimeError: the flash kernel cannot run.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 4, 96, 64, generator=generator).to(device).half().unbind(0)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says by a warning why a kernel is ruled out, then raises
        with only_flash():
            flash = F.scaled_dot_product_attention(q, k, v)
        logits = q.float() @ k.float().transpose(-1, -2) * 64**-0.5
        return flash.float(), logits.softmax(-1) @ v.float()


def only_flash() -> AbstractContextManager[None]:
    """A context in which ``scaled_dot_product_attention`` runs the flash kernel or raises."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    return context


def _ask(device: Device) -> AttentionSupport:
    if device is not None:
        device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if device.type != "cuda":
            return AttentionSupport(STANDARD, f"the device is {'the CPU' if device.type == 'cpu' else device.type}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old driver is reported by a warning; we give it as the reason below
        available = torch.cuda.is_available()
    if not available:
        return AttentionSupport(STANDARD, why_no_cuda())
    index = torch.cuda.current_device() if device is None or device.index is None else device.index
    device = torch.device("cuda", index)
    major, minor = torch.cuda.get_device_capability(device)
    name = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    if (major, minor) < AMPERE:
        return AttentionSupport(STANDARD, f"{name}; FlashAttention-2 needs 8.0 or newer")
    try:
        flash, exact = run_probe(device)
        difference = float((flash - exact).abs().max())
    except Exception as error:
        return AttentionSupport(STANDARD, f"{name}; the FlashAttention-2 kernel does not run: {first_sentence(error)}")
    if not difference <= PROBE_TOLERANCE:  # not a number is wrong too
        reason = f"{name}; the FlashAttention-2 kernel disagrees with plain mathematics by {difference:.2g}"
        return AttentionSupport(STANDARD, reason, difference)
    return AttentionSupport(FLASH, f"{name}; probe agrees to {difference:.1g}", difference)


def why_no_cuda() -> str:
    """Why torch can use no CUDA device here."""
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return "this torch is built without CUDA"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:
        return f"torch sees no CUDA GPU: {first_sentence(error)}"
    return "torch sees no CUDA GPU"


def first_sentence(error: Exception) -> str:
    """What an error says, shortened for a log line."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".")[:200] if lines else type(error).__name__
