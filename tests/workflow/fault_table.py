"""Run the tests of faults and of changes, and write what they saw into docs/faults.md and docs/content.md.

    python -m tests.workflow.fault_table            # all of them; those on Slurm as root, where Slurm is installed

The tests themselves hold every row against these files, so they cannot grow old unnoticed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.workflow.tables import CONTENT, FAULTS, RECORD

TABLES = {
    FAULTS: (
        (
            "tests/workflow/test_faults.py",
            "tests/workflow/test_classify.py",
            "tests/workflow/test_reuse.py",
            "tests/slurm/test_workflow.py",
        ),
        "| fault | what is lost | jobs run again |\n| --- | --- | --- |\n",
    ),
    CONTENT: (("tests/workflow/test_content.py",), "| what changed | jobs run again |\n| --- | --- |\n"),
}
BEGIN, END = "<!-- printed by tests/workflow/fault_table.py -->\n", "<!-- end -->\n"


def main() -> None:
    tests = [test for named, _ in TABLES.values() for test in named]
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows")
        # Slow ones are among them: faults of calls, and all faults once more with earlier results in use.
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "not index", *tests]
        if subprocess.run(command, env={**os.environ, RECORD: str(rows)}, check=False).returncode != 0:
            sys.exit("error: a test failed; the docs are left as they were")
        # With earlier results in use a fault costs the same, so each row is there once.
        printed = dict.fromkeys((name, row) for name, row in map(json.loads, rows.read_text().splitlines()))
    for path, (_, head) in TABLES.items():
        table = head + "".join(f"{row}\n" for name, row in printed if name == path.name)
        print(table)
        before, _, rest = path.read_text().partition(BEGIN)
        path.write_text(before + BEGIN + table + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
