"""The speed of two checkouts of this repository on one machine, in turns, and the ratio of their rates.

    git worktree add /tmp/old COMMIT
    python -m benchmarks.compare_checkouts /tmp/old --output out --models 650M 3B

Each checkout runs its own ``bench_esm2`` on Swiss-Prot-like lengths, without peers, from its own folder and with
its own package; what else is on the command line goes to it. Of the rounds the faster rate of each row counts,
because what disturbs a machine makes it slower. Results stay in ``output/old`` and ``output/new``, where
``python -m benchmarks.compare`` finds them again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import compare

ROOT = Path(__file__).resolve().parents[1]


def run_benchmark(root: Path, model: str, output: Path, options: list[str]) -> Any:
    """What ``bench_esm2`` of a checkout measures: the content of its JSON file.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    module = "benchmarks.bench_esm2" if (root / "benchmarks").is_dir() else "tests.benchmarks.bench_esm2"
    command = [sys.executable, "-m", module, "--models", model, "--kinds", "swiss", "--output", str(output), *options]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([*command, "--peers"], cwd=root, env=environment, check=True)
    return json.loads(output.read_text())


def faster(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both runs as one: of each row the faster."""
    rows = {tuple(row.get(name) for name in compare.NAMES): row for row in one["rows"]}
    for row in other["rows"]:
        key = tuple(row.get(name) for name in compare.NAMES)
        if key not in rows or row["tokens_per_second"] > rows[key]["tokens_per_second"]:
            rows[key] = row
    return {**one, "rows": list(rows.values())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="root of the other checkout")
    parser.add_argument("--new", type=Path, default=ROOT, help="by default this one")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["650M", "3B"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--within", default="2", help="percent that a rate may fall (default: 2)")
    arguments, options = parser.parse_known_args()
    roots = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
    folders = {name: arguments.output.resolve() / name for name in roots}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        best: dict[str, Any] = {}
        for number in range(arguments.rounds):
            # Old and new change places, so that a GPU which warms up treats both alike.
            for name in roots if number % 2 == 0 else reversed(roots):
                print(f"\n== {model}, {name}, round {number + 1}", flush=True)
                output = folders[name] / f"speed-{model}.json"
                found = run_benchmark(roots[name], model, output, options)
                best[name] = faster(best[name], found) if name in best else found
                output.write_text(json.dumps(best[name], indent=1) + "\n")
    print(flush=True)
    return compare.main([*map(str, folders.values()), "--within", arguments.within])


if __name__ == "__main__":
    raise SystemExit(main())
