"""``python -m tests.fuzz``: draw inputs for every target, in a process of limited memory, and print what is found.

A finding is any exception but a :class:`UserError`, a sentence that is not one printable line, an input that was
accepted and should not have been, more memory than the limit, or more than a minute.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.drawing import Target
from tests.fuzz.targets import TARGETS
from virnucpro.base.errors import UserError

SECONDS = 60
"""That one input may take."""

MEMORY = 2 << 30
"""Bytes of address space that reading may add to what the process has with its libraries loaded (RLIMIT_AS)."""


def fuzz(target: Target, count: int, chosen_seed: int, folder: Path) -> Counter[str]:
    """Run a target on so many inputs; counts of what came of them.

    Raises:
        Exception: the first finding, on the smallest input that shows it.
    """
    found: Counter[str] = Counter()

    @seed(chosen_seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def run(value: Any) -> None:
        signal.alarm(SECONDS)
        try:
            target.run(value, folder)
        except UserError as error:
            sentence = str(error)
        else:
            sentence = ""
        finally:
            signal.alarm(0)
        found["refused" if sentence else "accepted"] += 1
        assert not sentence or (sentence.isprintable() and len(sentence) < 5000), f"no printable line: {sentence}"

    run()
    return found


def limit_memory() -> None:
    """Bound this process's address space."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other inputs (default: %(default)s)")
    parser.add_argument("--target", choices=[target.name for target in TARGETS], help="this one alone")
    given_options = parser.parse_args()
    limit_memory()
    signal.signal(signal.SIGALRM, _too_long)
    findings = 0
    total = 0
    print(f"{'target':24}{'inputs':>9}{'accepted':>10}{'refused':>9}{'seconds':>9}", flush=True)
    for target in TARGETS:
        if given_options.target in (None, target.name):
            with tempfile.TemporaryDirectory() as folder:
                began = time.monotonic()
                share = 1.0 if given_options.target else target.share
                try:
                    found = fuzz(target, max(1, round(given_options.inputs * share)), given_options.seed, Path(folder))
                except BaseException:
                    findings += 1
                    print(f"{target.name}: FOUND", flush=True)
                    traceback.print_exc()
                    continue
                seconds = time.monotonic() - began
                total += found.total()
                print(
                    f"{target.name:24}{found.total():9,}{found['accepted']:10,}{found['refused']:9,}{seconds:9.1f}",
                    flush=True,
                )
    print(f"{total:,} inputs, {findings} findings; at most {MEMORY / 2**30:.0f} GiB (RLIMIT_AS), {SECONDS} s an input")
    return 1 if findings else 0


def _too_long(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"one input took more than {SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
