"""``make demo``: what it prints fits on a screen, in a file without anything that steers a terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.running import ROOT


@pytest.mark.slow  # both halves of the demo
def test_the_demo_prints_forty_lines_at_most(tmp_path: Path) -> None:
    made = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/.ready", "demo", f"DEMO={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    commands = made.stdout[made.stdout.index("export XDG") :].replace(
        ".venv/bin/snakemake", f"{sys.executable} -m snakemake"
    )
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=ROOT,
        env={**os.environ, "VIRNUCPRO_DISPLAY": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) <= 40, done.stdout
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    own = [line for line in lines if not line.startswith(("Using workflow specific", "Settings:", "The files of"))]
    assert max(map(len, own)) <= 80, done.stdout
    assert (tmp_path / "calls" / "viral_contigs" / "calls" / "contigs.tsv").is_file()
