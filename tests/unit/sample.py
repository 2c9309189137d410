"""One small sample with odd ids, split and with stub chunk files: what the tests of the table formats share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.unit.splitting import split_proteins
from tests.unit.stub_chunks import EXPECTED, write_stub_chunk
from virnucpro.base.settings import InputPolicies
from virnucpro.storage.merge import merge_embeddings
from virnucpro.storage.report_record import MergeCounts

ODD_IDS = [
    "sp|P1|X",
    "a/b",
    "a",
    "a/b/c",
    "/lead",
    "x//y",
    ".",
    "./z",
    "%2Flead",
    "été",
    "Ω",
    "P1/1-50",
    "P1",
    "..",
    "q/",
]


def write_input(path: Path, n: int = 60, seed: int = 0, longest: int = 40) -> list[tuple[str, bytes]]:
    """n proteins, about a third of them repeats; the first ids are odd ones."""
    chance = random.Random(seed)
    sequences: list[str] = []
    for _ in range(n):
        if sequences and chance.random() < 0.35:
            sequences.append(chance.choice(sequences))
        else:
            sequences.append("".join(chance.choices("LAGVSERTIDPKQNFYMHWCXBUZO", k=chance.randint(1, longest))))
    ids = ODD_IDS[:n] + [f"p{i}" for i in range(len(ODD_IDS), n)]
    path.write_text("".join(f">{i} about it\n{s}\n" for i, s in zip(ids, sequences, strict=True)), encoding="utf-8")
    return [(i, s.encode()) for i, s in zip(ids, sequences, strict=True)]


class Sample:
    """One sample, split, with stub chunk files."""

    def __init__(self, folder: Path, fasta: Path, *, chunk_residues: int = 150, **stub: Any) -> None:
        self.folder = folder
        self.index = folder / "proteins.parquet"
        policies = InputPolicies(suspicious="accept")  # random sequences have gaps
        self.counts = split_proteins(
            [fasta], self.index, folder / "chunks", chunk_residues=chunk_residues, policies=policies
        )
        self.fastas = sorted((folder / "chunks").glob("*.fasta"))
        self.stub = stub
        for chunk in self.fastas:
            write_stub_chunk(chunk, self.tensor(chunk.stem), **stub)

    def tensor(self, name: str) -> Path:
        return self.folder / "tensors" / f"{name}.safetensors"

    @property
    def tensors(self) -> list[Path]:
        return [self.tensor(chunk.stem) for chunk in self.fastas]

    def merge(self, *formats: str, **options: Any) -> MergeCounts:
        outputs = {name: self.folder / name for name in formats or ("parquet",)}
        expected = {**EXPECTED, **options.pop("expected", {})}
        return merge_embeddings(
            self.index,
            self.folder / "chunks",
            self.folder / "tensors",
            outputs,
            self.folder / "report.json",
            expected=expected,
            command="a test",
            **options,
        )
