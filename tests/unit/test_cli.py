"""The command line, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import virnucpro


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "virnucpro.cli", *arguments]
    env = {
        "PYTHONPATH": str(Path(virnucpro.__file__).parents[1]),
        "TORCH_HOME": str(folder / "hub"),
        "PATH": "/usr/bin",
    }
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_embed_writes_a_table_that_reads_back(tmp_path: Path) -> None:
    (tmp_path / "a.faa").write_text(">p1\nMKVLAAGIV\n>p2\nMKVX\n")
    done = run("embed", "a.faa", "-o", "out", "--model", "esm2_demo", "--formats", "npy", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    ids, matrix = virnucpro.read_embeddings(tmp_path / done.stdout.strip())[:2]
    assert list(ids) == ["p1", "p2"]
    assert matrix.shape == (2, 64)


def test_doctor_passes_on_the_cpu(tmp_path: Path) -> None:
    arguments = ("--model", "esm2_demo", "--device", "cpu", "--proteins", "4", "--longest", "60")
    done = run("doctor", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "virnucpro float32" in done.stderr
    assert "all within their limits" in done.stderr


def test_gpus_says_what_is_here(tmp_path: Path) -> None:
    done = run("gpus", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "attention" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("embed", "missing.faa", "-o", "out", "--model", "esm2_demo"), ["error:", "missing.faa"]),
        (("doctor", "--model", "esm2_demo", "--device", "cuda:77"), ["error:", "cuda:77"]),
        (("embed", "a.faa"), ["-o/--output"]),
    ],
)
def test_a_mistake_is_one_sentence(arguments: tuple[str, ...], words: list[str], tmp_path: Path) -> None:
    done = run(*arguments, folder=tmp_path)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert [word for word in words if word not in done.stderr] == []
