"""Several devices' embeddings back into one, in row order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from virnucpro.embedding.embed import Embeddings

Part = tuple[Mapping[str, Any], Mapping[str, np.ndarray]]
"""A worker's result: precisions, provenance, statistics; and its arrays by name."""


def gather(parts: Sequence[Part], shares: Sequence[np.ndarray]) -> Embeddings:
    """Put each part's rows where ``shares`` says they belong.

    Args:
        shares: for each part the row numbers of its proteins, in the part's order.
    """
    count = sum(len(rows) for rows in shares)
    order = np.argsort(np.concatenate(shares), kind="stable")

    def rows_of(name: str) -> np.ndarray:
        return np.concatenate([arrays[name] for _, arrays in parts])[order]

    precisions = sorted({name for result, _ in parts for name in result["precisions"]}, key=_width)
    precision = np.empty(count, dtype=np.uint8)
    for (result, arrays), rows in zip(parts, shares, strict=True):
        own = np.array([precisions.index(name) for name in result["precisions"]], dtype=np.uint8)
        precision[rows] = own[arrays["precision"]]

    embedded = rows_of("embedded")
    offsets = np.concatenate(([0], embedded.astype(np.int64).cumsum()))
    layers = {kind: _layers(parts, kind) for kind in ("mean", "residues")}
    return Embeddings(
        mean={layer: rows_of(f"mean.{layer}") for layer in layers["mean"]},
        residues={layer: _residues(parts, shares, offsets, f"residues.{layer}") for layer in layers["residues"]},
        offsets=offsets,
        lengths=rows_of("lengths"),
        windows=rows_of("windows"),
        embedded=embedded,
        precision=precision,
        precisions=precisions,
        provenance={
            key: " + ".join(dict.fromkeys(result["provenance"][key] for result, _ in parts))
            for key in parts[0][0]["provenance"]
        },
        statistics=_statistics([result["statistics"] for result, _ in parts]),
    )


def _width(precision: str) -> int:
    return ("float8_e4m3fn", "float16", "bfloat16", "float32").index(precision)


def _layers(parts: Sequence[Part], kind: str) -> list[int]:
    names = parts[0][1]
    return sorted(int(name.removeprefix(f"{kind}.")) for name in names if name.startswith(f"{kind}."))


def _residues(parts: Sequence[Part], shares: Sequence[np.ndarray], offsets: np.ndarray, name: str) -> np.ndarray:
    first = parts[0][1][name]
    whole = np.empty((int(offsets[-1]), first.shape[1]), dtype=first.dtype)
    for (_, arrays), rows in zip(parts, shares, strict=True):
        place = 0
        for row, length in zip(rows, arrays["embedded"], strict=True):
            whole[offsets[row] : offsets[row + 1]] = arrays[name][place : place + length]
            place += int(length)
    return whole


def _statistics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Counts add up; the time is the slowest device's, and the memory the fullest one's."""
    longest = ("seconds", "load_seconds", "peak_memory_bytes")
    total = {key: (max if key in longest else sum)(part[key] for part in parts) for key in parts[0]}
    padded = sum(part["tokens"] / (1 - part["padding_avoided"]) for part in parts)
    total["padding_avoided"] = 1 - total["tokens"] / padded if padded else 0.0
    total["tokens_per_second"] = total["tokens"] / max(total["seconds"], 1e-9)
    return total
