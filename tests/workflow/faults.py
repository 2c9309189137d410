"""What the fault tests share: an undisturbed run to compare with, faults to order, and the table of what they cost."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.workflow import tables
from tests.workflow.running import ROOT, SNAKEFILE, Result, snakemake
from virnucpro import embed

HOOKS = Path(__file__).parent / "fault_hooks"
CHUNKS = 10

TARGET = "results/own/embeddings.parquet"
"""The table: what comes after it (plots, summary) has no part in these tests."""


EARLIER = 20
"""Proteins that earlier results have, where a run reuses some."""


def write_proteins(path: Path, count: int = 60, *, seed: int = 11) -> list[str]:
    """A FASTA file of random proteins, some of them twice; the sequences."""
    chance = random.Random(seed)
    proteins = ["".join(chance.choices("ACDEFGHIKLMNPQRSTVWY", k=chance.randint(40, 300))) for _ in range(count)]
    proteins += proteins[:5]
    path.write_text("".join(f">protein_{seed}_{i}\n{protein}\n" for i, protein in enumerate(proteins)))
    return proteins


def config_for(folder: Path, chunks: int = CHUNKS) -> dict[str, object]:
    """Settings that cut the folder's proteins into about so many chunks, beside those that earlier results have."""
    proteins, earlier = folder / "own.faa", folder / "earlier.faa"
    left = _residues(proteins) - (_residues(earlier) if earlier.exists() else 0)
    reuse = {"reuse": folder / "earlier"} if earlier.exists() else {}
    return {"samples": proteins, "model": "esm2_demo", "chunk_residues": left // (chunks + 1), **reuse}


def _residues(proteins: Path) -> int:
    return sum(len(line) for line in proteins.read_text().splitlines() if not line.startswith(">"))


@dataclass
class Run:
    """A folder with the workflow's results, and the faults that are ordered in it."""

    folder: Path
    config: dict[str, object]
    arguments: Sequence[str] = ()
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plans.mkdir(exist_ok=True)

    @classmethod
    def of_proteins(cls, folder: Path) -> Run:
        """The run of the proteins in ``folder``."""
        return cls(folder, config_for(folder))

    @property
    def plans(self) -> Path:
        return self.folder / "faults"

    @property
    def tensors(self) -> Path:
        return self.folder / "results" / "tensors"

    @property
    def table(self) -> Path:
        return self.folder / TARGET

    @property
    def first(self) -> int:
        """The number of the first chunk that is embedded: one is copied from earlier results."""
        return 1 if "reuse" in self.config else 0

    def chunk(self, number: int) -> Path:
        """The chunk file that is embedded as number so and so, from 0 on."""
        return self.tensors / f"chunk_{self.first + number:05d}.safetensors"

    def log_of(self, number: int) -> Path:
        return self.folder / "results" / "logs" / "embed_esm2" / f"{self.chunk(number).stem}.log"

    def log(self, number: int) -> str:
        return self.log_of(number).read_text()

    def chunks_run(self, text: str) -> Counter[int]:
        """How often each chunk was embedded, by Snakemake's own output."""
        blocks = re.findall(r"^(?:local)?rule embed_esm2:\n(?:    .*\n)+", text, flags=re.MULTILINE)
        found = (re.search(r"wildcards: .*chunk=chunk_(\d+)", block) for block in blocks)
        return Counter(int(match[1]) - self.first for match in found if match)

    def order(self, output: Path, fault: str) -> None:
        (self.plans / output.name).write_text(fault)

    def forget(self, *numbers: int) -> None:
        """Take away chunk files, and the table that was made of them."""
        for number in numbers:
            self.chunk(number).unlink()
        self.forget_table()

    def forget_table(self) -> None:
        self.table.unlink()
        self.table.with_suffix(".json").unlink()

    def start(self, *arguments: str, in_its_own_session: bool = False, target: str = TARGET) -> subprocess.Popen[str]:
        """Call Snakemake and do not wait."""
        paths = [str(HOOKS), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "snakemake", "-s", str(SNAKEFILE), "--directory", str(self.folder)),
                *(self.arguments or ("--cores", "2")),
                *arguments,
                *filter(None, [target]),
                *("--config", *(f"{key}={value}" for key, value in self.config.items())),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "VIRNUCPRO_TEST_FAULTS": str(self.plans)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=in_its_own_session,
        )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], timeout: float = 300) -> Result:
        text, _ = process.communicate(timeout=timeout)
        return Result(process.returncode, text)

    def call(self, *arguments: str, target: str = TARGET) -> Result:
        return self.finish(self.start(*arguments, target=target))

    def again(self, *arguments: str, target: str = TARGET) -> Result:
        """A call for which no fault is ordered."""
        return snakemake(self.folder, *arguments, *filter(None, [target]), config=self.config)

    def struck(self, output: Path, seconds: float = 300) -> int:
        """Wait for the process that met its fault at this output, and give its id."""
        file = self.plans / f"{output.name}.pid"
        wait_until(file.exists, seconds)
        return int(file.read_text())

    def stop_all(self) -> None:
        """End whatever a failed test has left running."""
        running = [process for process in self._started if process.poll() is None]
        for process in running:
            process.kill()
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
            if str(self.plans).encode() in _environment_of(pid):  # jobs, also those that wait for a GPU
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in running:
            process.communicate()  # its jobs write to the same pipe, so they end first

    def left_over(self) -> list[str]:
        """Temporary files beside the results."""
        return [path.name for path in self.folder.joinpath("results").rglob(".*.tmp*")]

    def copy(self, folder: Path) -> Run:
        """The same results, times and Snakemake's records, elsewhere."""
        shutil.copytree(self.folder, folder, symlinks=True)
        shutil.rmtree(folder / "faults")
        return Run(folder, self.config, self.arguments)


def undisturbed_run(folder: Path, *, reuses: bool = False) -> Run:
    """A run in which nothing goes wrong; with ``reuses``, one that takes some proteins from earlier results."""
    write_proteins(folder / "own.faa")
    if reuses:
        write_proteins(folder / "earlier.faa", EARLIER, seed=12)
        embed(folder / "earlier.faa", folder / "earlier", model="esm2_demo", devices=["cpu"])
        with (folder / "own.faa").open("a") as file:
            file.write((folder / "earlier.faa").read_text())
    run = Run.of_proteins(folder)
    result = snakemake(folder, TARGET, config=run.config)
    assert result.code == 0, result.text
    assert result.jobs["embed_esm2"] >= CHUNKS
    assert len(list(run.tensors.iterdir())) == run.first + result.jobs["embed_esm2"]
    return run


def flip(path: Path) -> None:
    """Change one bit of a file, near its end."""
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)


def same_table(one: Path, other: Path) -> bool:
    """Whether two tables hold the same rows with the same numbers, bit for bit."""
    return bool(pq.read_table(one).equals(pq.read_table(other)))


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def record(fault: str, lost: str, again: Counter[str]) -> None:
    """Put a row into the table of faults, or hold it against the one in the docs."""
    tables.record(tables.FAULTS, fault, lost, again)


def _environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """What is in ``folder``, on a file system of so many megabytes; the test skips itself where none can be mounted."""
    aside = folder.with_name(f"{folder.name}-files")
    folder.rename(aside)
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until nothing fits any more."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        all(iter(lambda: file.write(b"x" * 1024), 0))
