"""What the tables are called, for those that only name them."""

from __future__ import annotations

TABLES = {
    "parquet": "embeddings.parquet",
    "hdf5": "embeddings.h5",
    "virnucpro_pt": "virnucpro_pt",
    "npy": "embeddings_npy",
}
"""What a format's table is called in a sample's folder."""

FOLDERS = frozenset({"virnucpro_pt", "npy"})
"""Formats whose table is a folder of files."""
