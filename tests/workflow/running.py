"""Run the real workflow in a folder of its own, and count what ran."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.workflow import warm

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
    """Call Snakemake from ``folder`` with the config's keys on the command line, by the command ``within`` if given.

    It is a fork of a process that has it imported already, and so are its jobs; with ``within`` it is a new process.
    """
    settings = [f"{key}={value}" for key, value in (config or {}).items()]
    words = [
        *("-m", "snakemake", "--cores", str(cores)),
        *(("-s", str(snakefile)) if snakefile else ()),
        *arguments,
        *(("--config", *settings) if settings else ()),
    ]
    environment = {**os.environ, **(env or {})}
    if not within:
        return _forked(words, folder, environment, timeout)
    done = subprocess.run(
        [*within, sys.executable, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout)


def _forked(words: list[str], folder: Path, env: dict[str, str], timeout: float) -> Result:
    with tempfile.TemporaryFile("w+") as output, Path(os.devnull).open() as nothing:
        outputs = [nothing.fileno(), output.fileno(), output.fileno()]
        connection = warm.request(words, str(folder), env | {warm.SERVER: _server()}, outputs)
        connection.settimeout(timeout)
        code = warm.status(connection)
        output.seek(0)
        return Result(code, output.read())


def forked_python() -> tuple[Path, dict[str, str]]:
    """A stand-in for Python whose processes (of a script, or ``-m``) are such forks, and what its environment needs."""
    return Path(_server()).with_name("python"), {warm.SERVER: _server()}


@cache
def _server() -> str:
    """The socket of this process's own server, which ends with it."""
    path = tempfile.mkdtemp(prefix="virnucpro-test-") + "/of.socket"
    server = subprocess.Popen(
        [sys.executable, warm.__file__, path],
        cwd="/",
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    assert server.stdout.readline()
    atexit.register(shutil.rmtree, Path(path).parent, ignore_errors=True)
    return path
