"""Mistakes of the first hour: the sentence is the last thing on the screen, and no table is left behind.

Those that Snakemake meets are in tests/workflow/test_mistakes.py, with the same demand.
"""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from virnucpro.cli import main

GOOD = ">a\nMKVLAAGIV\n>b\nMKVX\n"
FILES: dict[str, bytes] = {
    "good.faa": GOOD.encode(),
    "empty.faa": b"",
    "letter.faa": b"Dear colleague,\nplease find the sequences attached.\n",
    "digit.faa": b">a\nMKV\n>b\nMK7V\n",
    "twice.faa": b">a\nMKV\n>a\nMKL\n",
    "blank.faa": b">a\nMKV\n>b\n>c\nMKL\n",
    "dna.faa": b">contig\n" + b"ACGTTGCA" * 60 + b"\n",
    "picture.faa": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "cut.faa.gz": gzip.compress(GOOD.encode() * 999)[:-20],
    "page.faa": b"<!DOCTYPE html>\n<html><title>404 Not Found</title></html>\n",
    "report.docx": b"PK\x03\x04\x14\x00\x06\x00\x08\x00",
    "taken": b"a file of mine\n",
    "config.yaml": b"samples: good.faa\n",
}
EMBED = ("embed", "good.faa", "-o", "out")


def demo(*arguments: str) -> tuple[str, ...]:
    return (*arguments, "--model", "esm2_demo")


MISTAKES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "no such file": (demo("embed", "god.faa", "-o", "out"), ["god.faa", "no such file"]),
    "a folder": (demo("embed", ".", "-o", "out"), ["folder", "name the FASTA files"]),
    "an empty file": (demo("embed", "empty.faa", "-o", "out"), ["empty.faa", "--empty-samples skip"]),
    "a letter": (demo("embed", "letter.faa", "-o", "out"), ["letter.faa", "line 1", "FASTA"]),
    "a digit": (demo("embed", "digit.faa", "-o", "out"), ["digit.faa", "line 4", "'7'", "'b'"]),
    "an id twice": (demo("embed", "twice.faa", "-o", "out"), ["twice.faa", "line 3", "'a'", "--duplicate-ids"]),
    "an empty record": (
        demo("embed", "blank.faa", "-o", "out"),
        ["blank.faa", "line 3", "'b'", "--empty-records skip"],
    ),
    "DNA": (demo("embed", "dna.faa", "-o", "out"), ["dna.faa", "DNA", "nucleotide"]),
    "a picture": (demo("embed", "picture.faa", "-o", "out"), ["picture.faa"]),
    "a cut download": (demo("embed", "cut.faa.gz", "-o", "out"), ["cut.faa.gz", "cut short"]),
    "an error page": (demo("embed", "page.faa", "-o", "out"), ["page.faa", "html", "not a FASTA"]),
    "a document": (demo("embed", "report.docx", "-o", "out"), ["report.docx"]),
    "a misspelt model": ((*EMBED, "--model", "esm2_t33_650M"), ["esm2_t33_650M", "esm2_t33_650M_UR50D"]),
    "a model that is not there": ((*EMBED, "--model", "my/model.pt"), ["my/model.pt", "does not exist"]),
    "an adapter that is not there": ((*demo(*EMBED), "--adapter", "./lora"), ["lora", "does not exist"]),
    "a layer too many": ((*demo(*EMBED), "--layers", "33"), ["layer 33", "4 layers"]),
    "a layer's name": ((*demo(*EMBED), "--layers", "first"), ["option --layers", "'first'"]),
    "another pooling": ((*demo(*EMBED), "--pooling", "average"), ["--pooling", "'average'", "mean"]),
    "another format": ((*demo(*EMBED), "--formats", "csv"), ["--formats", "'csv'", "parquet"]),
    "int8 on a CPU": ((*demo(*EMBED), "--precision", "int8", "--devices", "cpu"), ["int8"]),
    "a GPU that is not there": ((*demo(*EMBED), "--devices", "cuda:77"), ["cuda:77"]),
    "no device's name": ((*demo(*EMBED), "--devices", "gpu"), ["'gpu'", "cuda"]),
    "chunks of nothing": ((*demo(*EMBED), "--chunk-residues", "0"), ["option --chunk-residues", "1 or more"]),
    "windows that stand still": (
        (*demo(*EMBED), "--longest", "100", "--overlap", "100"),
        ["option --overlap", "option --longest"],
    ),
    "residues in a format of means": (
        (*demo(*EMBED), "--pooling", "per_residue", "--formats", "virnucpro_pt"),
        ["virnucpro_pt", "--pooling mean"],
    ),
    "no threads": ((*demo(*EMBED), "--threads", "0"), ["threads", "1 or more"]),
    "a file where a folder is meant": (demo("embed", "good.faa", "-o", "taken"), ["taken"]),
    "no folder": (demo("embed", "good.faa"), ["-o/--output"]),
    "a home that is nobody's": (demo("embed", "~nobody_here/a.faa", "-o", "out"), ["~nobody_here"]),
    "standard input twice": (demo("embed", "-", "-", "-o", "out"), ["(-)", "twice"]),
    "nothing on standard input": (demo("embed", "-", "-o", "out"), ["out/stdin.fasta"]),
    "a misspelt option": ((*demo(*EMBED), "--pooing", "mean"), ["--pooing"]),
    "a misspelt command": (("embd", "good.faa"), ["'embd'", "embed"]),
    "run without files": (("run", "--directory", "elsewhere"), ["no FASTA file", "virnucpro init"]),
    "run with a wrong value": (("run", "good.faa", "--layers", "x"), ["option --layers", "'x'"]),
    "init over a config": (("init", "good.faa"), ["config.yaml", "there already"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_sentence_is_the_last_thing_on_the_screen(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if "GPU" in mistake and torch.cuda.device_count() > 77:
        pytest.skip("this machine has it")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    for name, content in FILES.items():
        Path(name).write_bytes(content)
    arguments, words = MISTAKES[mistake]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (1, 2)
    said = capfd.readouterr()
    last = (said.out + said.err).splitlines()[-1]
    assert "error: " in last
    assert [word for word in words if word not in last] == [], last
    assert "Traceback" not in said.err
    assert not list(Path().rglob("embeddings*"))
    assert Path("config.yaml").read_bytes() == FILES["config.yaml"]


def test_there_are_thirty() -> None:
    assert len(MISTAKES) >= 30
