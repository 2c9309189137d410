"""What a run will do, said before it does it: chunks, proteins, residues and GPU time (``snakemake --dry-run``).

Needs no numpy: with conda, Snakemake's own Python has none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virnucpro.base.errors import UserError
from virnucpro.base.safetensors_header import HeaderError, read_header
from virnucpro.base.text import duration, number
from virnucpro.chunking.size import SPECIAL_TOKENS, chunk_count
from virnucpro.config import RunConfig
from virnucpro.sequences.amount import Amount, estimate

H200_TOKENS_PER_SECOND = {"esm2_t33_650M_UR50D": 341_000, "esm2_t36_3B_UR50D": 95_600}
"""In fp16 on one NVIDIA H200 with torch 2.11 (benchmarks/results); in docs/models.md too."""


@dataclass(frozen=True)
class Rate:
    """How a finished chunk ran."""

    tokens: float
    seconds: float
    device: str


@dataclass(frozen=True)
class Planned:
    """What is left of one sample: ``line`` says it; ``rates`` are of its finished chunks."""

    line: str
    tokens: int
    chunks: int
    exact: bool
    rates: tuple[Rate, ...] = ()


def planned_text(run: RunConfig) -> str:
    """A line a sample, and one with the GPU time of what is left."""
    samples = plan(run)
    lines = [sample.line for sample in samples]
    chunks, tokens = sum(sample.chunks for sample in samples), sum(sample.tokens for sample in samples)
    exact = all(sample.exact for sample in samples)
    if not chunks:
        return "\n".join([*lines, "Nothing is left to embed."] if exact else lines)
    about = "" if exact else "about "
    lines.append(f"Left to embed: {about}{number(chunks, 'chunk')}, {about}{number(tokens, 'token')}.")
    rates = [rate for sample in samples for rate in sample.rates]
    return "\n".join([*lines, _time(run, tokens, rates)])


def plan(run: RunConfig) -> list[Planned]:
    """Look at the splits that are there, and at the FASTA files of samples without one."""
    planned = []
    for name, files in run.samples.items():
        manifests = sorted((run.results / name / "chunks").glob("chunk_*.json"))
        planned.append(_split(run, name, manifests) if manifests else _not_split(run, name, files))
    return planned


def _split(run: RunConfig, name: str, manifests: Sequence[Path]) -> Planned:
    """A sample whose chunks are known."""
    left, rates = [], []
    entries = [json.loads(path.read_text(encoding="utf-8")) for path in manifests]
    for path, entry in zip(manifests, entries, strict=True):
        rate = _rate(run.results / name / "tensors" / f"{path.stem}.safetensors", entry["digest"], run)
        if rate is None:
            left.append(entry)
        else:
            rates.append(rate)
    proteins, residues = (sum(entry[key] for entry in entries) for key in ("proteins", "residues"))
    tokens = sum(entry["residues"] + SPECIAL_TOKENS * entry["proteins"] for entry in left)
    line = (
        f"Sample {name}: {number(len(entries), 'chunk')} of {number(proteins, 'different protein')}, "
        f"{number(residues, 'residue')}; {len(rates):,} done, {len(left):,} to embed."
    )
    return Planned(line, tokens, len(left), True, tuple(rates))


def _not_split(run: RunConfig, name: str, files: Sequence[Path]) -> Planned:
    """A sample of which the input files alone are known."""
    translated = _translated(run, name)
    contigs = run.input == "nucleotide" and not translated.exists()
    amount = _amount(run, [translated] if run.input == "nucleotide" and not contigs else files)
    if amount is None:
        return Planned(f"Sample {name}: its files cannot be read.", 0, 0, False)
    about = "" if amount.exact else "about "
    if contigs:
        size = f"{about}{number(amount.records, 'contig')}, {number(amount.letters, 'base')}"
        return Planned(f"Sample {name}: {size}; proteins are known once they are translated.", 0, 0, False)
    if not amount.records:
        return Planned(f"Sample {name}: no protein in it.", 0, 0, True)
    chunks = chunk_count(amount.unique_letters, amount.unique, *run.chunk_size)
    line = (
        f"Sample {name}: {about}{number(amount.records, 'protein')}, {number(amount.letters, 'residue')}; "
        f"not split yet, about {number(chunks, 'chunk')}."
    )
    return Planned(line, amount.unique_letters + SPECIAL_TOKENS * amount.unique, chunks, False)


def _translated(run: RunConfig, name: str) -> Path:
    return run.results / name / "translated.faa"


def _amount(run: RunConfig, files: Sequence[Path]) -> Amount | None:
    """What is in the files; None when one cannot be read, which the split will say better."""
    try:
        return estimate(files, skip_repeated_ids=run.policies.duplicate_ids == "skip")
    except (UserError, OSError):
        return None


def _rate(tensors: Path, digest: str, run: RunConfig) -> Rate | None:
    """How a finished chunk ran; None when it is not there, or of other sequences, another model or precision."""
    try:
        with tensors.open("rb") as file:
            metadata = read_header(file).metadata
        statistics = json.loads(metadata["statistics"])
        rate = Rate(float(statistics["tokens"]), float(statistics["seconds"]), metadata["device"])
    except (OSError, HeaderError, KeyError, ValueError):
        return None
    wanted = {"model": run.model.name, "precision": run.embedding.precision, "chunk_digest": digest}
    return rate if all(metadata.get(key) == value for key, value in wanted.items()) else None


def _time(run: RunConfig, tokens: int, rates: Sequence[Rate]) -> str:
    """The time that one device needs for what is left, and where the rate comes from."""
    seconds = sum(rate.seconds for rate in rates)
    if seconds:
        needed = duration(tokens * seconds / sum(rate.tokens for rate in rates))
        devices = ", ".join(dict.fromkeys(rate.device for rate in rates))
        return f"About {needed} on one device such as did the finished chunks ({devices})."
    known = H200_TOKENS_PER_SECOND.get(run.model.name)
    if known is None or run.embedding.precision == "fp32":
        return "The time that takes is known once the first chunk is done: then ask again."
    return (
        f"About {duration(tokens / known)} of GPU time on one NVIDIA H200 (measured there with torch 2.11: {known:,} "
        "tokens/s). Other GPUs differ: once the first chunk is done, ask again."
    )
