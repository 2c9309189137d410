"""ESM-2 on packed sequences, with fair-esm's parameters, interface and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virnucpro.models.esm2_flash import ESM2WithFlashAttention, load_esm2_model

__all__ = ["ESM2WithFlashAttention", "load_esm2_model"]


def __getattr__(name: str) -> Any:
    # fair-esm takes a second to import and embed jobs do without it, so it waits until it is asked for.
    if name in __all__:
        from virnucpro.models import esm2_flash

        return getattr(esm2_flash, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
