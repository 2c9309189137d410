"""What the system limits, done for real: each ends in one sentence, leaves nothing half-written, and is no defect."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workflow.faults import HOOKS
from virnucpro.base.limits import let_waiting_threads_sleep, sentence_for
from virnucpro.jobs import job

ROOT = Path(__file__).parents[2]
EMBED = [sys.executable, "-m", "virnucpro.cli", "embed", "own.faa", "-o", "out", "--model", "esm2_demo"]
LONGEST_WAIT = 300


@pytest.mark.parametrize(
    ("given", "found"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_that_wait_sleep_unless_the_user_says_how_they_wait(
    given: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    let_waiting_threads_sleep()
    assert os.environ.get("GOMP_SPINCOUNT") == found


FAULTS = """
import resource
from virnucpro.base.limits import keep_freed_memory

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        bytearray(50 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults(1)
print(faults(4))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library here is not glibc")
@pytest.mark.parametrize(("given", "is_kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_kept_unless_the_user_says_otherwise(given: dict[str, str], is_kept: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name} | given
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert (int(done.stdout) < 1000) == is_kept


def limited(kind: int, amount: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (amount, amount))


def embed(folder: Path, command: list[str], limit: Callable[[], None] | None = None) -> tuple[int, str]:
    """Run it, and give how it ended and the last line of what it said; nothing of it may look like a defect."""
    (folder / "own.faa").write_text(">a\nMKVLAAGIV\n>b\nMKVX\n")
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
        timeout=LONGEST_WAIT,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "defect" not in done.stderr
    assert not list(folder.rglob(".*.tmp*"))
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("megabytes", "words"), [(100, "every step needs 536.9 MB"), (600, "not enough main memory (lib")]
)
def test_too_little_memory(megabytes: int, words: str, tmp_path: Path) -> None:
    """Where no library could start, and where torch can't be loaded."""
    code, last = embed(tmp_path, EMBED, limited(resource.RLIMIT_AS, megabytes * 1_000_000))
    assert code == 1
    assert words in last
    assert last.endswith("run the same command again")


def test_files_may_not_be_large_enough(tmp_path: Path) -> None:
    """The first large file is the checkpoint of the demo, which is there for a moment only."""
    command = [*EMBED, "--weights-folder", str(tmp_path / "weights")]  # where nothing is yet
    code, last = embed(tmp_path, command, limited(resource.RLIMIT_FSIZE, 50_000))
    assert code == 1
    assert "File too large: this process may write files of 50.0 kB (`ulimit -f`)" in last
    assert str(tmp_path / "weights") in last


@pytest.mark.parametrize("threads", [1, 3])
def test_too_few_threads(threads: int, tmp_path: Path) -> None:
    """As a user who has no other process; root's number is not limited."""
    if os.getuid() != 0 or not shutil.which("setpriv") or not shutil.which("prlimit"):
        pytest.skip("needs root, setpriv and prlimit, to become a user without processes")
    may = "-all,+dac_override,+dac_read_search"  # so that another user may run this Python wherever it lies
    becomes = ["setpriv", "--reuid=54321", "--clear-groups"]
    becomes += [f"--{kind}={may}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    code, last = embed(tmp_path, [*becomes, "prlimit", f"--nproc={threads}", *EMBED])
    assert code == 1
    assert f"no further thread or process can be started (`ulimit -u` allows this user {threads})" in last


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    """A second one a moment later, as Snakemake and impatient people send it, does not come between."""
    (tmp_path / "own.faa").write_text(">a\nMKVLAAGIV\n")
    (tmp_path / "embeddings.parquet").write_text("pause")
    env = {**os.environ, "PYTHONPATH": f"{HOOKS}{os.pathsep}{ROOT}", "VIRNUCPRO_TEST_FAULTS": str(tmp_path)}
    process = subprocess.Popen(EMBED, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + LONGEST_WAIT
    while not (tmp_path / "embeddings.parquet.pid").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    process.send_signal(number)
    said = process.communicate(timeout=LONGEST_WAIT)[1]
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("[embed] stopped by ")
    assert number.name in said.splitlines()[-1]
    assert not list(tmp_path.rglob(".*.tmp*"))
    assert not list(tmp_path.rglob("embeddings.*t"))[1:]


def test_a_log_that_cannot_be_written_hides_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """/dev/full refuses every byte; what went wrong is said on standard error."""
    with pytest.raises(SystemExit), job("step", "/dev/full"):
        raise MemoryError
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("[step] error: not enough main memory: ")


def test_a_log_without_a_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(SystemExit), job("step", tmp_path / "logs" / "step.log"):
        pass
    assert "[step] error: cannot write" in capsys.readouterr().err


def test_what_libraries_say_of_memory_is_told_from_defects() -> None:
    import numpy as np
    import torch

    for ask in (lambda: np.empty(1 << 60, np.uint8), lambda: torch.empty(1 << 60, dtype=torch.uint8)):
        with pytest.raises((MemoryError, RuntimeError)) as raised:
            ask()
        assert (sentence_for(raised.value) or "").startswith("not enough main memory (")
    assert sentence_for(RuntimeError("could not create a primitive")), "oneDNN's"
    assert sentence_for(RuntimeError("index out of range")) is None
    assert sentence_for(KeyError("allocate")) is None


def test_a_record_too_long_for_a_protein_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    """A gigabyte in one line, of which the file system keeps next to nothing; the process may use 700 MB."""
    path = tmp_path / "chromosome.faa"
    with path.open("wb") as file:
        file.write(b">one\nMKLV")
        file.truncate(1 << 30)
    program = f"""
from pathlib import Path
from virnucpro.jobs import job
with job("split"):
    from tests.unit.splitting import split_proteins
    split_proteins([Path({str(path)!r})], Path("index"), Path("chunks"), chunk_residues=1000)
"""
    code, last = embed(tmp_path, [sys.executable, "-c", program], limited(resource.RLIMIT_AS, 700_000_000))
    assert code == 1
    assert "chromosome.faa, line 1: a record of more than 16,777,216 letters" in last
