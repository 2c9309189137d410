"""Contigs, random features and VirNucPro's classifier as its scripts leave them, and its procedure restated plainly."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.unit.test_virnucpro_pt import read_plain
from virnucpro.sequences.translation import translate_contigs

BASES_WIDTH, PROTEIN_WIDTH = 8, 12


class MLPClassifier(nn.Module):
    """The attributes of ``train.py``'s, which are what the file holds."""

    def __init__(self, width: int = BASES_WIDTH + PROTEIN_WIDTH) -> None:
        super().__init__()
        self.hidden_layer = nn.Linear(width, 512)
        self.bn1 = nn.BatchNorm1d(512)
        self.output_layer = nn.Linear(512, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.output_layer(self.dropout(torch.relu(self.bn1(self.hidden_layer(x)))))
        return out


def trained(width: int = BASES_WIDTH + PROTEIN_WIDTH) -> MLPClassifier:
    torch.manual_seed(3)
    model = MLPClassifier(width)
    for _ in range(20):  # running statistics other than 0 and 1
        model(torch.randn(64, width) * 2 + 1)
    return model.eval()


def save_as_main(model: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As ``python train.py`` saves it: the class is of ``__main__``."""
    with monkeypatch.context() as patch:
        patch.setattr(MLPClassifier, "__module__", "__main__")
        patch.setattr(sys.modules["__main__"], "MLPClassifier", MLPClassifier, raising=False)
        torch.save(model, path)
    return path


def contigs(path: Path) -> Path:
    """Contigs of several windows, one shorter than a window, one without any stop-free frame."""
    draw = random.Random(5)
    sense = [a + b + c for a in "ACG" for b in "ACG" for c in "ACGT"]  # seldom a stop codon on either strand
    texts = {f"contig_{i}": "".join(draw.choices(sense, k=k)) for i, k in enumerate((1500, 380, 40, 167))}
    texts["a_chunk_1"] = texts["contig_1"][7:900]
    texts["silent"] = "TAACTAGTTAGCTAACTTAACTAA" * 30
    path.write_text("".join(f">{name} x\n{text}\n" for name, text in texts.items()))
    return path


def vector(text: str, width: int) -> list[float]:
    return torch.randn(width, generator=torch.Generator().manual_seed(hash_of(text))).tolist()


def hash_of(text: str) -> int:
    return sum(ord(letter) * pow(31, place, 1 << 31) for place, letter in enumerate(text)) % (1 << 31)


def frames_of(fasta: Path, window: int = 300) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    folder = fasta.parent
    translate_contigs([fasta], folder / "p.faa", folder / "n.fna", window=window)
    return read_plain(folder / "p.faa"), read_plain(folder / "n.fna")


def save_features(folder: Path, fasta: Path, *, per_file: int = 20) -> list[Path]:
    """The files that VirNucPro's scripts write, ESM-2's in order of length."""
    folder.mkdir()
    proteins, nucleotides = frames_of(fasta)
    paths = []
    for number, start in enumerate(range(0, len(proteins), per_file), 1):
        bases = nucleotides[start : start + per_file]
        rows = [{"label": name, "mean_representation": vector(text, BASES_WIDTH)} for name, text in bases]
        part = sorted(proteins[start : start + per_file], key=lambda record: len(record[1]))
        vectors = [torch.tensor(vector(text, PROTEIN_WIDTH)) for _, text in part]
        paths += [folder / f"output_{number}_DNABERT_S.pt", folder / f"output_{number}_ESM.pt"]
        torch.save({"nucleotide": [name for name, _ in bases], "data": rows}, paths[-2])
        torch.save({"proteins": [name for name, _ in part], "data": vectors}, paths[-1])
    return paths


def original(model: nn.Module, fasta: Path) -> tuple[dict[str, tuple[float, float]], dict[str, bool]]:
    """VirNucPro's procedure from features on, one frame at a time: scores of frames and answers for windows."""
    proteins, nucleotides = frames_of(fasta)
    scores: dict[str, tuple[float, float]] = {}
    best: dict[str, list[float]] = {}
    for (name, protein), (same, bases) in zip(proteins, nucleotides, strict=True):
        assert name == same
        x = torch.tensor([vector(bases, BASES_WIDTH) + vector(protein, PROTEIN_WIDTH)])
        with torch.no_grad():
            a, b = model(x)[0].tolist()
        top = max(a, b)
        a, b = math.exp(a - top), math.exp(b - top)
        scores[name] = a / (a + b), b / (a + b)
        most = best.setdefault(name[:-2], [0.0, 0.0])
        best[name[:-2]] = [max(pair) for pair in zip(most, scores[name], strict=True)]
    return scores, {window: virus >= others for window, (others, virus) in best.items()}


def table(path: Path) -> list[dict[str, str]]:
    head, *lines = (line.split("\t") for line in path.read_text().splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def column(rows: Sequence[dict[str, str]], name: str) -> list[str]:
    return [row[name] for row in rows]
