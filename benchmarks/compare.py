"""Two result folders beside each other: what became faster or slower, nearer or farther from fair-esm.

    python -m benchmarks.compare benchmarks/results/2026-11-24-nvidia-h200 results/new

Compares JSON files of the same name, as bench_esm2.py and accuracy_esm2.py write them. Ends with 1 when an engine of
ours became slower by more than ``--within`` percent. Two machines, or two days on one, differ by more than that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAMES = ("model", "kind", "weights", "engine", "name")
"""What says which row is meant; the rest of a row are figures."""

FIGURES = ("tokens_per_second", "residue_error", "pooled_error", "cosine_distance")


@dataclass(frozen=True)
class Change:
    """One figure in both folders."""

    file: str
    row: tuple[str, ...]
    figure: str
    before: float
    after: float

    @property
    def slower(self) -> float:
        """By how many percent a rate of ours fell; 0 where it did not, or where the figure is none."""
        if self.figure != "tokens_per_second" or not any(name.startswith("ours") for name in self.row):
            return 0.0
        return max(0.0, 100 * (1 - self.after / self.before))

    def __str__(self) -> str:
        change = f"{100 * (self.after / self.before - 1):+.1f} %" if self.before else ""
        figures = f"{self.before:12,.4g}  {self.after:12,.4g}  {change:>9}"
        return f"{self.file:24}  {', '.join(self.row):44}  {self.figure:17}  {figures}"


def changes(before: Path, after: Path) -> Iterator[Change]:
    """Each figure that both folders have, file by file and row by row."""
    for file in sorted(path.name for path in before.glob("*.json") if (after / path.name).is_file()):
        old, new = rows(before / file), rows(after / file)
        for row in old:
            for figure in FIGURES:
                if row in new and figure in old[row] and figure in new[row]:
                    yield Change(file, row, figure, old[row][figure], new[row][figure])


def rows(path: Path) -> dict[tuple[str, ...], dict[str, float]]:
    """The figures of a file's rows, by what names the row."""
    content = json.loads(path.read_text(encoding="utf-8"))
    found = content if isinstance(content, list) else content["rows"]
    return {tuple(row[name] for name in NAMES if name in row): row for row in found}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--within", type=float, default=2.0, help="percent that a rate may fall (default: 2)")
    given = parser.parse_args(arguments)
    found = list(changes(given.before, given.after))
    for change in found:
        print(change)
    if not found:
        print(f"{given.before} and {given.after} have no figure in common")
        return 1
    slower = [change for change in found if change.slower > given.within]
    print(f"{len(found)} figures; rates of ours that fell by more than {given.within:g} %: {len(slower)}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
