"""FlashAttention-2 over packed sequences through ``torch.nn.attention.varlen`` (torch 2.10 and newer)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from virnucpro.cuda.attention_utils import FLASH
from virnucpro.models.segments import Segments


class VarlenAttention:
    """One kernel call for the whole batch."""

    name = "varlen_attn"
    implementation = FLASH

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        """Take torch's function (or the one given) with the arguments that it has.

        Raises:
            ImportError: this torch has none.
        """
        if function is None:
            from torch.nn.attention.varlen import varlen_attn

            function = varlen_attn
        self._function: Callable[..., Any] = function
        # torch 2.10 has no `scale` and always multiplies by head_dim ** -0.5.
        self.scales = "scale" not in inspect.signature(function).parameters
        self._options: dict[str, Any] = {} if self.scales else {"scale": 1.0}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        ends, longest = segments.cu_seqlens, segments.max_seqlen
        out: Tensor = self._function(q, k, v, ends, ends, longest, longest, **self._options)
        return out
