"""Gathering several devices' rows: order, residues, precisions and statistics."""

from __future__ import annotations

from typing import Any

import numpy as np

from virnucpro.engine.devices import gather

STATISTICS = {
    "proteins": 2,
    "residues": 5,
    "tokens": 90,
    "seconds": 3.0,
    "load_seconds": 1.0,
    "tokens_per_second": 30.0,
    "padding_avoided": 0.1,
    "peak_memory_bytes": 7,
    "out_of_memory_retries": 1,
    "recomputed": 1,
}


def part(rows: list[int], precisions: list[str], precision: list[int], device: str, **changes: float) -> Any:
    """Protein ``row`` has row + 1 residues, all of value row; its mean is row."""
    lengths = np.array([row + 1 for row in rows], dtype=np.int32)
    values = np.repeat(np.array(rows, dtype=np.float32), lengths)
    arrays = {
        "lengths": lengths,
        "windows": np.ones(len(rows), dtype=np.int32),
        "embedded": lengths,
        "precision": np.array(precision, dtype=np.uint8),
        "mean.3": np.array(rows, dtype=np.float32)[:, None],
        "residues.3": values[:, None],
    }
    provenance = {"device": device, "attention": "standard_attention"}
    return {"precisions": precisions, "provenance": provenance, "statistics": STATISTICS | changes}, arrays


def test_rows_come_back_in_their_order_with_what_is_theirs() -> None:
    shares = [np.array([1, 3]), np.array([0, 2])]
    found = gather(
        [
            part([1, 3], ["float16", "float32"], [1, 0], "Tesla T4", seconds=5.0),
            part([0, 2], ["float16"], [0, 0], "NVIDIA A100", tokens=110),
        ],
        shares,
    )
    assert found.mean[3][:, 0].tolist() == [0, 1, 2, 3]
    assert found.lengths.tolist() == [1, 2, 3, 4]
    assert found.offsets.tolist() == [0, 1, 3, 6, 10]
    assert found.residues[3][:, 0].tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert found.precisions == ["float16", "float32"]
    assert found.precision.tolist() == [0, 1, 0, 0]
    assert found.provenance == {"device": "Tesla T4 + NVIDIA A100", "attention": "standard_attention"}
    assert found.statistics["tokens"] == 200
    assert found.statistics["seconds"] == 5.0
    assert found.statistics["tokens_per_second"] == 40
    assert found.statistics["proteins"] == 4
    assert found.statistics["recomputed"] == 2
    assert abs(found.statistics["padding_avoided"] - 0.1) < 1e-9


def test_precisions_of_different_devices_are_told_apart() -> None:
    found = gather(
        [part([0], ["float32"], [0], "a"), part([1], ["float16", "bfloat16"], [1], "a")], [np.array([0]), np.array([1])]
    )
    assert found.precisions == ["float16", "bfloat16", "float32"]
    assert found.precision.tolist() == [2, 1]
    assert found.provenance["device"] == "a"
