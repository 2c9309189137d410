"""The README's tables of accuracy and speed, from the results that are kept.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "2026-11-24-nvidia-h200"
INTEGERS = RESULTS.parent / "2026-11-28-nvidia-h100" / "accuracy-int8.json"


def accuracy_table() -> str:
    """A row for each model and kind of weights; ratios are to fair-esm's own error in the same precision."""
    rows = [row for name in ("small", "large") for row in _read(f"accuracy-{name}.json")]
    integers = {(row["model"], row["weights"]): row["cosine_distance"] for row in _read(INTEGERS)}
    lines = [
        "| model | weights | fp32, largest difference | fp16, 1 - cosine | fp16 / fair-esm's | bf16, 1 - cosine "
        "| bf16 / fair-esm's | int8, 1 - cosine |",
        "|" + " --- |" * 8,
    ]
    for model, weights in dict.fromkeys((row["model"], row["weights"]) for row in rows):
        ours = {
            row["name"].split()[1]: row
            for row in rows
            if (row["model"], row["weights"]) == (model, weights) and row["name"].startswith("virnucpro")
        }
        largest = max(ours["fp32"]["residue_error"], ours["fp32"]["pooled_error"])
        halves = [f"{ours[one]['cosine_distance']:.1e} | {ours[one]['ratio']:.2f}" for one in ("fp16", "bf16")]
        coarse = integers.get((model, weights))
        cells = [model, weights, f"{largest:.1e}", *halves, "" if coarse is None else f"{coarse:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speed_table() -> str:
    """3B on Swiss-Prot-like lengths, one row an engine."""
    lines = [
        "| 3B, lengths as in Swiss-Prot | tokens/s | times fair-esm fp32 | share of the matmul ceiling |",
        "|" + " --- |" * 4,
    ]
    for row in _read("speed-3B.json")["rows"]:
        if "float8" in row["engine"]:  # int8 is in its place since
            continue
        rate, times, share = row["tokens_per_second"], row["times_fair_esm"], 100 * row["share"]
        lines.append(f"| {row['engine']} | {rate:,.0f} | {times:.1f} | {share:.0f} % |")
    return "\n".join(lines)


def _read(name: str | Path) -> Any:
    return json.loads((RESULTS / name).read_text())


if __name__ == "__main__":
    print(accuracy_table(), speed_table(), sep="\n\n")
