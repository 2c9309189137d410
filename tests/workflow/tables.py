"""Tables in the docs that tests print: each row is held against the docs, or written there."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

from tests.workflow.running import ROOT

FAULTS = ROOT / "docs" / "faults.md"
CONTENT = ROOT / "docs" / "content.md"

RECORD = "VIRNUCPRO_TEST_TABLE"
"""Set to a file's name, it gathers the rows there (see fault_table.py); else the rows must stand in the docs."""


def record(table: Path, *cells: str | Counter[str]) -> None:
    """Put a row into a table, or hold it against the one in the docs; counted jobs are written in words."""
    row = "| " + " | ".join(cell if isinstance(cell, str) else in_words(cell) for cell in cells) + " |"
    if RECORD in os.environ:
        with Path(os.environ[RECORD]).open("a") as file:
            file.write(json.dumps([table.name, row]) + "\n")
    else:
        assert row in table.read_text(), f"{table} is out of date (python -m tests.workflow.fault_table): {row}"


def in_words(jobs: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(jobs.items()) if count) or "none"
