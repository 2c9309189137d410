"""Reports of merges as the tests of summary and plots want them, written as real records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from virnucpro.base.records import from_entries, write_record
from virnucpro.storage.report_record import REPORT, Provenance, SampleReport

_PROVENANCE: dict[str, Any] = {
    "model": "esm2_t36_3B_UR50D",
    "weights_sha256": "ab" * 32,
    "source": "esm2_t36_3B_UR50D.pt (sha256 cd)",
    "layers": [36],
    "pooling": ["mean"],
    "precision": "auto",
    "embed_dim": 2560,
    "long_proteins": {"policy": "window", "longest": 1022, "overlap": 511},
    "dtype": "float32",
    "counts": {},
    "attention": {},
    "attention_kernel": {},
    "device": {},
    "precisions": {},
    "versions": [{"virnucpro": "0.1.0"}],
    "command": "a test",
    "warning": "",
}


def stub_provenance(**changes: Any) -> Provenance:
    """Where no numbers come from."""
    return from_entries({**_PROVENANCE, **changes}, Provenance, Path("stub"))


def chunk(number: int, **changes: Any) -> dict[str, Any]:
    """One chunk's entry; ``changes`` go to its statistics where they have such a name, else to the entry."""
    statistics: dict[str, Any] = {
        "proteins": 10,
        "residues": 980,
        "tokens": 1000,
        "seconds": 2.0,
        "load_seconds": 1.0,
        "padding_avoided": 0.5,
        "peak_memory_bytes": 3 << 30,
        "out_of_memory_retries": 0,
        "recomputed": 0,
    }
    entry: dict[str, Any] = {
        "chunk": f"chunk_{number:05d}",
        "attention": "flash_attention_2",
        "attention_kernel": "varlen_attn",
        "device": "NVIDIA H200",
        "precisions": ["float16"],
        "host": "node7",
        "ended": "2026-11-28T04:45:10.000Z",
        "statistics": statistics,
        "proteins": 10,
        "digest": "d" * 32,
        "reused_from": "",
        "numbers": "1",
    }
    for key, value in changes.items():
        (statistics if key in statistics else entry)[key] = value
    entry["proteins"] = statistics["proteins"]
    return entry


def write_report(folder: Path, sample: str, chunks: list[dict[str, Any]], **changes: Any) -> Path:
    """Write ``embeddings.json`` of a sample; ``changes`` go to its counts where those have such a name."""
    proteins = sum(entry["statistics"]["proteins"] for entry in chunks)
    residues = sum(entry["statistics"]["residues"] for entry in chunks)
    counts: dict[str, Any] = {
        "records": proteins,
        "unique": proteins,
        "residues": residues,
        "unique_residues": residues,
        "longest": 98,
        "replaced": 0,
        "replaced_records": 0,
        "chunks": len(chunks),
    }
    merged: dict[str, Any] = {"windowed": 0, "truncated": 0, "embed_dim": 2560}
    origin = {**_PROVENANCE, "counts": counts, "precisions": {"float16": proteins}}
    for key, value in changes.items():
        next((part for part in (counts, merged) if key in part), origin)[key] = value
    merged |= {"records": counts["records"], "unique": counts["unique"]}
    path = folder / sample / REPORT
    tables = {"parquet": {"embeddings.parquet": {"size": 4, "sha256": "cd" * 32}}}
    report = {"made_from": {}, "provenance": origin, "merged": merged, "tables": tables, "chunks": chunks}
    write_record(path, from_entries(report, SampleReport, path))
    return path
