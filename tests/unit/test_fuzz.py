"""A short leg of ``make fuzz``: every target, in a process of its own whose memory is limited."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_nothing_is_found_in_some_inputs() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "600"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 findings" in done.stdout
