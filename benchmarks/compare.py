"""Two folders of results beside each other, with the ratio of what was measured.

    python -m benchmarks.compare benchmarks/results/OLD benchmarks/results/NEW
    python -m benchmarks.compare OLD NEW --only ours --slowest 0.98

Rows are those of the JSON files that ``bench_esm2`` and ``accuracy_esm2`` write, paired by file name, model, lengths or
weights, and engine. With ``--slowest`` the exit code is 1 when any rate has fallen below that share of the old one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

KEYS = ("model", "kind", "weights", "engine", "name")
"""What names a row."""

MEASURED = ("tokens_per_second", "share", "peak_gib", "residue_error", "pooled_error", "cosine_distance")
"""What is compared."""

RATE = "tokens_per_second"

Rows = dict[tuple[str, ...], dict[str, float]]
"""What was measured, by file and what names the row."""


class Pair(NamedTuple):
    """One number of both folders."""

    key: tuple[str, ...]
    measure: str
    old: float
    new: float

    @property
    def ratio(self) -> float:
        return self.new / self.old if self.old else float("nan")


def read_folder(folder: Path) -> tuple[Rows, set[str]]:
    """The rows of a folder's JSON files, and the machines that they are from.

    Raises:
        FileNotFoundError: the folder has no JSON file.
    """
    rows: Rows = {}
    machines = set()
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no results (*.json)")
    for path in files:
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            machines.add(f"{content.get('device')}, torch {content.get('torch')}")
        for row in content.get("rows", []) if isinstance(content, dict) else content:
            key = (path.stem, *(str(row[name]) for name in KEYS if name in row))
            rows[key] = {name: float(row[name]) for name in MEASURED if row.get(name) is not None}
    return rows, machines


def pairs(old: Rows, new: Rows) -> Iterator[Pair]:
    """What both have, in the order of the new one."""
    for key, measures in new.items():
        for name, value in measures.items():
            if name in old.get(key, {}):
                yield Pair(key, name, old[key][name], value)


def format_pairs(found: list[Pair]) -> str:
    """A table in Markdown."""
    lines = ["| file | what | measured | old | new | new / old |", "|" + " --- |" * 6]
    lines += [
        f"| {one.key[0]} | {' '.join(one.key[1:])} | {one.measure.replace('_', ' ')} "
        f"| {one.old:,.4g} | {one.new:,.4g} | {one.ratio:.3f} |"
        for one in found
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", default="", help="compare rows whose name holds this text alone")
    parser.add_argument("--slowest", type=float, help="the least ratio of rates that is well")
    arguments = parser.parse_args()
    (old, old_machines), (new, new_machines) = read_folder(arguments.old), read_folder(arguments.new)
    if old_machines != new_machines:
        print(f"not of one machine: {', '.join(old_machines)}; {', '.join(new_machines)}\n")
    found = [one for one in pairs(old, new) if arguments.only in " ".join(one.key)]
    print(format_pairs(found))
    for folder, alone in ((arguments.old, old.keys() - new.keys()), (arguments.new, new.keys() - old.keys())):
        for key in sorted(alone):
            print(f"only in {folder}: {' '.join(key)}")
    slow = [one for one in found if one.measure == RATE and not one.ratio >= (arguments.slowest or 0)]
    for one in slow:
        print(f"slower than {arguments.slowest:g} of the old rate: {' '.join(one.key)} ({one.ratio:.3f})")
    return 1 if slow or not found else 0


if __name__ == "__main__":
    raise SystemExit(main())
