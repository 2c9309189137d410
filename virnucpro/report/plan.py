"""What a run will do, said before it does it: chunks, proteins, residues and GPU time (``snakemake --dry-run``).

Needs no numpy: with conda, Snakemake's own Python has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record
from virnucpro.base.text import duration, number
from virnucpro.chunking.manifest import ChunkManifest, chunk_name, read_split
from virnucpro.chunking.size import SPECIAL_TOKENS, chunk_count
from virnucpro.config import RunConfig
from virnucpro.sequences.amount import Amount, estimate
from virnucpro.storage.chunk_metadata import DeviceRun
from virnucpro.storage.state import RunState

H200_TOKENS_PER_SECOND = {"esm2_t33_650M_UR50D": 341_000, "esm2_t36_3B_UR50D": 95_600}
"""In fp16 on one NVIDIA H200 with torch 2.11 (benchmarks/results); in docs/models.md too."""


@dataclass(frozen=True)
class Planned:
    """What is left of one sample: ``line`` says it; ``finished`` tells how its finished chunks ran."""

    line: str
    tokens: int
    chunks: int
    exact: bool
    finished: tuple[DeviceRun, ...] = ()


def planned_text(run: RunConfig, state: RunState) -> str:
    """A line a sample, and one with the GPU time of what is left."""
    samples = plan(run, state)
    lines = [sample.line for sample in samples]
    chunks, tokens = sum(sample.chunks for sample in samples), sum(sample.tokens for sample in samples)
    exact = all(sample.exact for sample in samples)
    if not chunks:
        return "\n".join([*lines, "Nothing is left to embed."] if exact else lines)
    about = "" if exact else "about "
    lines.append(f"Left to embed: {about}{number(chunks, 'chunk')}, {about}{number(tokens, 'token')}.")
    finished = [done for sample in samples for done in sample.finished]
    return "\n".join([*lines, _time(run, tokens, finished)])


def plan(run: RunConfig, state: RunState) -> list[Planned]:
    """Look at the splits that are what is wanted, and at the FASTA files of samples without one."""
    return [
        _split(state, name) if state.split_stale(name) is None else _not_split(run, state, name, files)
        for name, files in run.samples.items()
    ]


def _split(state: RunState, name: str) -> Planned:
    """A sample whose chunks are known."""
    folder = state.samples[name].chunks
    split = read_split(folder)
    left, finished = [], []
    for count in range(len(split.chunks)):
        chunk = chunk_name(count)
        if state.chunk_stale(name, chunk) is not None:
            left.append(read_record(folder / f"{chunk}.json", ChunkManifest))
        elif (done := state.chunk_run(name, chunk)) is not None:
            finished.append(done)
    tokens = sum(entry.residues + SPECIAL_TOKENS * entry.proteins for entry in left)
    chunks = len(split.chunks)
    line = (
        f"Sample {name}: {number(chunks, 'chunk')} of {number(split.counts['unique'], 'different protein')}, "
        f"{number(split.counts['unique_residues'], 'residue')}; {chunks - len(left):,} done, {len(left):,} to embed."
    )
    return Planned(line, tokens, len(left), True, tuple(finished))


def _not_split(run: RunConfig, state: RunState, name: str, files: Sequence[Path]) -> Planned:
    """A sample of which the input files alone are known."""
    translated = state.samples[name].translated
    contigs = run.input == "nucleotide" and state.translation_stale(name) is not None
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


def _amount(run: RunConfig, files: Sequence[Path]) -> Amount | None:
    """What is in the files; None when one cannot be read, which the split will say better."""
    try:
        return estimate(files, skip_repeated_ids=run.policies.duplicate_ids == "skip")
    except (UserError, OSError):
        return None


def _time(run: RunConfig, tokens: int, finished: Sequence[DeviceRun]) -> str:
    """The time that one device needs for what is left, and where the rate comes from."""
    seconds = sum(done.statistics.seconds for done in finished)
    if seconds:
        needed = duration(tokens * seconds / sum(done.statistics.tokens for done in finished))
        devices = ", ".join(dict.fromkeys(done.device for done in finished))
        return f"About {needed} on one device such as did the finished chunks ({devices})."
    known = H200_TOKENS_PER_SECOND.get(run.model.name)
    if known is None or run.embedding.precision == "fp32":
        return "The time that takes is known once the first chunk is done: then ask again."
    return (
        f"About {duration(tokens / known)} of GPU time on one NVIDIA H200 (measured there with torch 2.11: {known:,} "
        "tokens/s). Other GPUs differ: once the first chunk is done, ask again."
    )
