"""FlashAttention-2 over packed sequences by our own Triton kernel."""

from __future__ import annotations

from torch import Tensor

from virnucpro.cuda.attention_utils import FLASH
from virnucpro.models.segments import Segments


class TritonAttention:
    """One kernel call for the whole batch."""

    name = "triton_flash"
    implementation = FLASH
    scales = False

    def __init__(self) -> None:
        """Raises: ImportError where Triton is not installed."""
        from virnucpro.models.attention.kernel_triton import attend

        self._attend = attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        out: Tensor = self._attend(q, k, v, segments.cu_seqlens, segments.max_seqlen)
        return out
