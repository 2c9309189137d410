"""Everything that needs a GPU, in one call, each part bounded in time and in a process of its own.

    python -m benchmarks.gpu_session --output out --minutes 9
    python -m benchmarks.gpu_session --output out --parts speed-3B profile-3B

Parts run in the order given by --parts; one that outruns its limit is ended, and the next begins. What
each printed is in ``output/PART.log``, its last lines on the terminal. Torch, fair-esm, numpy, safetensors
and pytest suffice.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCH = ["-m", "benchmarks.bench_esm2", "--device", "cuda"]
ACCURACY = ["-m", "benchmarks.accuracy_esm2", "--device", "cuda"]
JOB = ["-m", "benchmarks.bench_job"]
PROFILE = ["-m", "benchmarks.profile_esm2", "--device", "cuda", "--model"]
REPORT = (
    "import logging, pathlib; logging.basicConfig(level=20, format='%(message)s');"
    "from virnucpro.gpu_report import detect_gpu; detect_gpu(pathlib.Path('{out}/gpu.json'), logging.getLogger())"
)

PARTS: dict[str, tuple[int, list[str]]] = {
    "report": (60, ["-c", REPORT]),
    "tests": (
        240,
        ["-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "tests/test_flashattention.py", "-p", "no:cacheprovider"],
    ),
    "accuracy-small": (150, [*ACCURACY, "--models", "8M", "35M", "150M", "--output", "{out}/accuracy-small.json"]),
    "accuracy-large": (240, [*ACCURACY, "--models", "650M", "3B", "--output", "{out}/accuracy-large.json"]),
    "accuracy-int8": (
        120,
        [
            *(*ACCURACY, "--models", "8M", "150M", "650M", "3B", "--precisions", "int8", "--shortest", "20"),
            *("--output", "{out}/accuracy-int8.json"),
        ],
    ),
    "speed-3B": (300, [*BENCH, "--models", "3B", "--kinds", "swiss", "orf", "--output", "{out}/speed-3B.json"]),
    "speed-650M": (240, [*BENCH, "--models", "650M", "--kinds", "swiss", "orf", "--output", "{out}/speed-650M.json"]),
    "speed-small": (
        240,
        [*BENCH, "--models", "8M", "35M", "150M", "--kinds", "swiss", "orf", "--output", "{out}/speed-small.json"],
    ),
    "speed-long": (240, [*BENCH, "--models", "650M", "--kinds", "long", "4000", "--output", "{out}/speed-long.json"]),
    "profile-3B": (120, [*PROFILE, "3B"]),
    "profile-3B-eager": (120, [*PROFILE, "3B", "--no-fused"]),
    "profile-3B-int8": (120, [*PROFILE, "3B", "--precision", "int8"]),
    "profile-650M": (120, [*PROFILE, "650M"]),
    "profile-8M": (120, [*PROFILE, "8M"]),
    "job-650M": (240, [*JOB, "--model", "650M", "--proteins", "100000"]),
    "job-residues": (
        300,
        [*JOB, "--model", "650M", "--proteins", "10000", "--pooling", "per_residue", "--dtype", "float32"],
    ),
    "job-residues-float16": (
        300,
        [*JOB, "--model", "650M", "--proteins", "10000", "--pooling", "per_residue", "--dtype", "float16"],
    ),
    "job-3B": (300, [*JOB, "--model", "3B", "--proteins", "8000"]),
    "growth": (240, [*JOB, "--model", "150M", "--proteins", "5000", "--growth"]),
}
"""Part, limit in seconds, and Python's arguments; ``{out}`` is the output folder."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=1e6, help="start nothing more after this long")
    parser.add_argument("--lines", type=int, default=40, help="of each part's output on the terminal")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"PYTHONUNBUFFERED": "1", "TRITON_CACHE_DIR": str(arguments.output.resolve() / ".triton")}
    environment.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    deadline = time.monotonic() + 60 * arguments.minutes
    failed = []
    for part in arguments.parts:
        left = deadline - time.monotonic()
        if left < 20:
            print(f"== {part}: not begun, the time is up", flush=True)
            failed.append(part)
            continue
        limit, command = PARTS[part]
        code, seconds, text = run_part(part, command, min(limit, left), arguments.output, environment)
        print(f"== {part}: exit {code} after {seconds:.0f} s", flush=True)
        print("\n".join(text.splitlines()[-arguments.lines :]), flush=True)
        if code:
            failed.append(part)
    print(f"== not well: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def run_part(
    part: str, command: list[str], limit: float, output: Path, environment: dict[str, str]
) -> tuple[int, float, str]:
    """Exit code (124 when ended for its time), seconds, and what was printed."""
    log = output / f"{part}.log"
    started = time.monotonic()
    words = [sys.executable, *(word.replace("{out}", str(output.resolve())) for word in command)]
    with log.open("w") as file:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = 124
    return code, time.monotonic() - started, log.read_text(errors="replace")


if __name__ == "__main__":
    raise SystemExit(main())
