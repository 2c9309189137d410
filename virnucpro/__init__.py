"""Embed proteins in bulk with ESM-2: as right as fair-esm in fp32, as fast as the GPU allows.

``virnucpro.embed(fasta, folder)`` embeds without Snakemake, ``virnucpro.embed_sequences({"id": "MKV"})`` without files;
``virnucpro.read_embeddings(path)`` reads a table.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virnucpro.api import embed, embed_sequences
    from virnucpro.base.errors import UserError
    from virnucpro.base.settings import LongProteins
    from virnucpro.storage.tables import read_embeddings, read_residues

__version__ = "0.1.0"
__all__ = ["LongProteins", "UserError", "__version__", "embed", "embed_sequences", "read_embeddings", "read_residues"]

_HOMES = {
    "embed": "virnucpro.api",
    "embed_sequences": "virnucpro.api",
    "LongProteins": "virnucpro.base.settings",
    "UserError": "virnucpro.base.errors",
    "read_embeddings": "virnucpro.storage.tables",
    "read_residues": "virnucpro.storage.tables",
}


def __getattr__(name: str) -> Any:
    # Each is imported when it is first used: the GPU part runs where the table libraries are not installed.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
