"""The command line, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import virnucpro
from virnucpro.cli import main


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


def test_the_steps_one_by_one_give_the_table_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    Path("a.faa").write_text(">p1\nMKVLAAGIV\n>p2\nMKVX\n>p3\nMKVLWAALLVTF\n")
    settings: tuple[str, ...] = ("--layers", "0", "-1", "--pooling", "mean", "per_residue", "--long-proteins", "window")
    settings += ("--longest", "8", "--overlap", "3")
    tables = ("--formats", "npy", "--dtype", "float16")

    def step(*arguments: str) -> str:
        main(arguments)
        return capsys.readouterr().out.strip()

    weights = step("prepare", "--model", "esm2_demo", "-o", "weights")
    step("split", "a.faa", "-o", "by_hand", "--chunk-residues", "10", "--model", "esm2_demo", *settings[-6:])
    chunks = sorted(path.stem for path in Path("by_hand/chunks").glob("chunk_*.json"))
    assert len(chunks) == 3
    for chunk in chunks:
        step("embed-chunk", "by_hand", chunk, "--weights", weights, "--devices", "cpu", *settings)
    table = step("merge", "by_hand", "--weights", weights, *settings, *tables)
    Path("known.tsv").write_text("id\thost\np1\tbat\n")
    drawn = step("map", "by_hand", "--metadata", "known.tsv", "--neighbours", "1").splitlines()
    assert drawn == ["by_hand/plots/map.html", "by_hand/neighbours.tsv"]
    assert len(Path(drawn[1]).read_text().splitlines()) == 4
    text = step("summarise", "by_hand", "-o", "summary")
    assert text.startswith("Embedded 3 proteins of sample by_hand")
    assert {path.name for path in Path("summary").iterdir()} >= {"summary.tsv", "summary.html", "chunks.tsv", "plots"}

    whole = step("embed", "a.faa", "-o", "whole", "--model", "esm2_demo", "--chunk-residues", "10", *settings, *tables)
    for file in Path(whole).glob("*.npy"):
        assert file.read_bytes() == (Path(table) / file.name).read_bytes()

    Path("a.fna").write_text(">c\n" + "ATGAAAGTT" * 40 + "\n")
    assert step("translate", "a.fna", "-o", "contigs", "--window", "300") == "contigs/translated.faa"
    assert Path("contigs/translated.faa").read_text().startswith(">c_chunk_1F1")


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
        (("embed", "~nouser/a.faa", "-o", "out"), ["~nouser", "does not exist"]),
        (("embed", "a.faa", "-o", "out", "--pooling", "sum"), ["--pooling", "'sum'", "per_residue"]),
        (("embed", "a.faa", "-o", "out", "--layers", "1.5"), ["error:", "option --layers", "'1.5'", "whole number"]),
        (("merge", "none", "--weights", "w.safetensors"), ["error:", "none"]),
    ],
)
def test_a_mistake_is_one_sentence(arguments: tuple[str, ...], words: list[str], tmp_path: Path) -> None:
    done = run(*arguments, folder=tmp_path)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert [word for word in words if word not in done.stderr] == []
