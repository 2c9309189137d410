"""Run the real workflow in a folder of its own, and count what ran."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SNAKEFILE = ROOT / "workflow" / "Snakefile"
EXAMPLE = ROOT / "examples" / "viral_proteins.faa"


@dataclass
class Result:
    """How one call of Snakemake ended."""

    code: int
    text: str
    jobs: Counter[str] = field(init=False)

    def __post_init__(self) -> None:
        started = re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):$", self.text, flags=re.MULTILINE)
        self.jobs = Counter(name for name in started if name != "all")


def snakemake(
    folder: Path,
    *arguments: str,
    config: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    snakefile: Path | None = SNAKEFILE,
    cores: int = 2,
    timeout: float = 300,
    within: Sequence[str] = (),
) -> Result:
    """Call Snakemake from ``folder`` with the config's keys on the command line, by the command ``within`` if given."""
    settings = [f"{key}={value}" for key, value in (config or {}).items()]
    command = [
        *within,
        *(sys.executable, "-m", "snakemake", "--cores", str(cores)),
        *(("-s", str(snakefile)) if snakefile else ()),
        *arguments,
        *(("--config", *settings) if settings else ()),
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout)
