"""Faults on demand, for tests: Python imports this by itself in processes that have its folder on PYTHONPATH.

The workflow's code knows nothing of it. Every output of a job comes into being by ``os.replace``, so that is where a
fault strikes: at the latest moment, when all the work is done and nothing of it counts yet. The folder
VIRNUCPRO_TEST_FAULTS holds a file for each output that is to meet one; its text says what happens:

    pause          tell the process id, then wait to be killed; the next attempt goes through
    hold           tell the process id, then wait until the file "NAME.release" is there
    fail TEXT      raise RuntimeError(TEXT); the next attempt goes through
    memory MB      hold so much memory for some seconds, at every attempt
    late SECONDS   let the file appear only so much later, when the job has long ended
"""

# ruff: noqa: PTH104, PTH110, PTH118, PTH119, PTH123
# Every Python of the workflow imports this at its start: as little as possible.
import os
import subprocess
import sys
import time
from typing import Any

_replace = os.replace


def _strike(plan: str, source: str, target: str) -> bool:
    """Do what the plan says; True when the file has been taken care of."""
    with open(plan) as file:
        word, _, rest = file.read().strip().partition(" ")
    if word in ("pause", "fail"):
        os.rename(plan, plan + ".done")
    if word in ("pause", "hold"):
        with open(plan + ".new", "w") as file:
            file.write(str(os.getpid()))
        _replace(plan + ".new", plan + ".pid")
        while not os.path.exists(plan + ".release"):
            time.sleep(0.05)
    elif word == "fail":
        raise RuntimeError(rest)
    elif word == "memory":
        held = bytearray(int(rest) * 1_000_000)
        held[::4096] = b"x" * len(held[::4096])
        time.sleep(6)
    elif word == "late":
        os.rename(source, f"{target}.late")
        script = "import os, sys, time; time.sleep(float(sys.argv[1])); os.rename(sys.argv[2], sys.argv[3])"
        subprocess.Popen(
            [sys.executable, "-c", script, rest, f"{target}.late", str(target)],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return True
    return False


def _replace_or_fail(source: Any, target: Any, **options: Any) -> None:
    plan = os.path.join(os.environ["VIRNUCPRO_TEST_FAULTS"], os.path.basename(target))
    if os.path.exists(plan) and _strike(plan, os.fspath(source), os.fspath(target)):
        return
    _replace(source, target, **options)


if "VIRNUCPRO_TEST_FAULTS" in os.environ:
    os.replace = _replace_or_fail  # type: ignore[assignment]
