"""Run the fault tests and write what they saw into docs/faults.md.

    python -m tests.workflow.fault_table            # all of them; those on Slurm as root, where Slurm is installed

The tests themselves hold every row against that file, so it cannot grow old unnoticed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.workflow.faults import RECORD, TABLE

TESTS = ("tests/workflow/test_faults.py", "tests/slurm/test_workflow.py")
HEAD = "| fault | what is lost | jobs run again |\n| --- | --- | --- |\n"
BEGIN, END = "<!-- printed by tests/workflow/fault_table.py -->\n", "<!-- end -->\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-rs", *TESTS], env={**os.environ, RECORD: str(rows)}, check=False
        )
        if done.returncode != 0:
            sys.exit("error: a fault test failed; docs/faults.md is left as it was")
        table = HEAD + "".join(json.loads(line) + "\n" for line in rows.read_text().splitlines())
    print(table)
    before, _, rest = TABLE.read_text().partition(BEGIN)
    TABLE.write_text(before + BEGIN + table + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
