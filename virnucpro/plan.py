"""What a run will do, said before it does it: its samples, what is done, and what the rest takes.

Needs no numpy: with conda, Snakemake's own Python has none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from virnucpro.base.errors import UserError
from virnucpro.base.limits import free_bytes, no_room
from virnucpro.base.records import read_record
from virnucpro.base.text import duration, number, size
from virnucpro.calling.state import CallsState
from virnucpro.chunking.manifest import ChunkManifest, chunk_name
from virnucpro.chunking.size import SPECIAL_TOKENS, chunk_count
from virnucpro.config import RunConfig
from virnucpro.models.reference import DEMO_WARNINGS, KNOWN, RELEASED, ModelRef, planning_architecture
from virnucpro.sequences.fasta import ENOUGH, Amount, estimate
from virnucpro.slurm.resources import MEGABYTE, embed_memory_mb
from virnucpro.storage.chunk_metadata import DeviceRun
from virnucpro.storage.sizes import Kept
from virnucpro.storage.state import RunState

H200_TOKENS_PER_SECOND = {"esm2_t33_650M_UR50D": 341_000, "esm2_t36_3B_UR50D": 95_600}
"""In fp16 on one NVIDIA H200 with torch 2.11 (benchmarks/results); in docs/models.md too."""

MOST_LINES = 100
"""Samples that are told one by one; in the sums all are counted."""


@dataclass(frozen=True)
class Planned:
    """What is left of one sample.

    ``line`` says it; ``of_bases`` tells that it is of nucleotides, so that ``tokens`` are bases; ``finished`` tells how
    its finished chunks ran; ``disk`` is the bytes that its files take, about, and ``disk_for_sure`` what they take at
    least.
    """

    line: str
    tokens: int
    chunks: int
    exact: bool
    finished: tuple[DeviceRun, ...] = ()
    disk: int = 0
    disk_for_sure: int = 0
    of_bases: bool = False


def planned_text(run: RunConfig, samples: Sequence[Planned], most: int = MOST_LINES) -> str:
    """A line a sample, of ``most`` of them, and what is left takes: GPU time, and room on the disk."""
    lines = [sample.line for sample in samples[:most]]
    if len(samples) > len(lines):
        lines.append(f"... and {len(samples) - len(lines):,} lines more, of other samples")
    if disk := _disk(run, samples):
        lines.append(disk)
    chunks, exact = sum(sample.chunks for sample in samples), all(sample.exact for sample in samples)
    if not chunks:
        return "\n".join([*lines, "Nothing is left to embed."] if exact else lines)
    for of_bases in (False, True):
        lines += _left(run, [sample for sample in samples if sample.of_bases == of_bases])
    return "\n".join(lines)


def _left(run: RunConfig, samples: Sequence[Planned]) -> list[str]:
    """What is left of proteins, or of nucleotides, and the time that it takes."""
    chunks, tokens = sum(sample.chunks for sample in samples), sum(sample.tokens for sample in samples)
    if not chunks:
        return []
    about = "" if all(sample.exact for sample in samples) else "about "
    finished = [done for sample in samples for done in sample.finished]
    if samples[0].of_bases:
        line = f"Left to embed of nucleotides: {about}{number(chunks, 'chunk')}, {about}{number(tokens, 'base')}."
        seconds = sum(done.statistics.seconds for done in finished)
        bases = sum(done.statistics.residues for done in finished)
        return [line, f"About {duration(tokens * seconds / bases)} on one such device."] if bases else [line]
    line = f"Left to embed: {about}{number(chunks, 'chunk')}, {about}{number(tokens, 'token')}."
    time = _time(run, tokens, finished)
    return [line, time] if time else [line]


def plan(run: RunConfig, state: RunState, calls: CallsState | None = None, *, enough: int = ENOUGH) -> list[Planned]:
    """Look at the splits that are what is wanted, and at the FASTA files of samples without one.

    Args:
        calls: the state of the calls, where they are asked for.
        enough: bytes of each of those files that are read; a larger one is judged by its beginning.
    """
    if state.split_stale() is None:
        planned = _split(run, state)
    else:
        each = [_not_split(run, state, name, files, enough) for name, files in run.samples.items()]
        planned = _sharing(run, each) if len(each) > 1 else each
    return planned if calls is None else [*planned, *_nucleotides(calls)]


def why_no_room(run: RunConfig, samples: Sequence[Planned]) -> str | None:
    """The sentence that refuses a run whose results the disk can't hold. Weights are not counted."""
    needed = sum(sample.disk_for_sure for sample in samples)
    with suppress(OSError):
        if needed > (free := free_bytes(run.results)):
            return no_room(run.results, "chunk files and tables take", needed, free)
    return None


def _disk(run: RunConfig, samples: Sequence[Planned]) -> str:
    needed = sum(sample.disk for sample in samples)
    with suppress(OSError):
        if needed:
            line = f"Disk: about {size(needed)} for chunk files and tables, "
            line += f"{size(free_bytes(run.results))} free in {run.results}"
            return line + (": that does not fit, and a run will not begin." if why_no_room(run, samples) else ".")
    return ""


def _kept(run: RunConfig, state: RunState) -> Kept | None:
    """What is kept of each protein; None of a model whose width is not known yet."""
    known = state.manifest() or KNOWN.get(run.model.name)
    return None if known is None else Kept(known.embed_dim, len(run.embedding.layers), run.embedding, run.tables)


def _sharing(run: RunConfig, samples: Sequence[Planned]) -> list[Planned]:
    """Samples that will share chunks: those of all count with the first one."""
    tokens = sum(sample.tokens for sample in samples)
    chunks = chunk_count(tokens, tokens, *run.chunk_size) if tokens else 0
    return [replace(sample, chunks=0 if number else chunks, exact=False) for number, sample in enumerate(samples)]


def _split(run: RunConfig, state: RunState) -> list[Planned]:
    """Samples whose chunks are known; what is left of a chunk that several share counts with the first of them."""
    split, kept = state.split(), _kept(run, state)
    left = {name for name in state.names(split) if state.chunk_stale(name) is not None}
    counted: set[str] = set()
    planned = []
    for name in run.samples:
        sample = split.samples[name]
        names = [chunk_name(number) for number in sample.chunks]
        new = [chunk for chunk in names if chunk not in counted]
        counted |= set(new)
        entries = [read_record(state.pool.chunks / f"{chunk}.json", ChunkManifest) for chunk in new if chunk in left]
        runs = (state.chunk_run(chunk) for chunk in new if chunk not in left)
        disk = 0
        if kept:
            disk = _missing(kept, state, entries)
            if state.tables_stale(name) is not None:
                disk += kept.table_bytes(sample.counts["records"], sample.counts["residues"])
        to_embed = len(left.intersection(names))
        line = (
            f"{name}: {number(len(names), 'chunk')} of {number(sample.counts['unique'], 'different protein')}, "
            f"{number(sample.counts['unique_residues'], 'residue')}; {len(names) - to_embed:,} done, "
            f"{to_embed:,} to embed."
        )
        tokens = sum(entry.residues + SPECIAL_TOKENS * entry.proteins for entry in entries)
        finished = tuple(run for run in runs if run is not None)
        planned.append(Planned(line, tokens, len(entries), True, finished, disk, disk if kept and kept.is_exact else 0))
    return planned


def _nucleotides(calls: CallsState) -> list[Planned]:
    """The nucleotides of samples' frames, and the calls."""
    state = calls.nucleotides
    if state.split_stale() is not None:
        line = "Chunks of nucleotides are known once the contigs are translated and split."
        return [Planned(line, 0, 0, False, of_bases=True)]
    split = state.split()
    names = state.names(split)
    left = [chunk for chunk in names if state.chunk_stale(chunk) is not None]
    entries = [read_record(state.pool.chunks / f"{chunk}.json", ChunkManifest) for chunk in left]
    runs = (state.chunk_run(chunk) for chunk in names if chunk not in left)
    disk = _missing(Kept(split.settings.embed_dim, 1, state.pool.embedding), state, entries)
    stale = sum(calls.calls_stale(sample) is not None for sample in state.samples)
    contigs = "all contigs are called" if not stale else f"contigs of {number(stale, 'sample')} are to be called"
    line = (
        f"{number(len(names), 'chunk')} of nucleotides, {number(split.counts['unique_residues'], 'base')}; "
        f"{len(names) - len(left):,} done, {len(left):,} to embed; {contigs}."
    )
    bases = sum(entry.residues for entry in entries)
    finished = tuple(run for run in runs if run is not None)
    return [Planned(line, bases, len(left), True, finished, disk, disk, of_bases=True)]


def _missing(kept: Kept, state: RunState, chunks: Sequence[ChunkManifest]) -> int:
    """The bytes that chunk files will take more than what is there in their places."""
    places = [state.pool.chunk_file(chunk.chunk) for chunk in chunks]
    there = [path.stat().st_size if path.exists() else 0 for path in places]
    sizes = [kept.chunk_bytes(chunk.proteins, chunk.residues) for chunk in chunks]
    return sum(max(0, size - own) for size, own in zip(sizes, there, strict=True))


def _not_split(run: RunConfig, state: RunState, name: str, files: Sequence[Path], enough: int) -> Planned:
    """A sample of which the input files alone are known."""
    translated = state.samples[name].translated
    contigs = run.input == "nucleotide" and state.translation_stale(name) is not None
    amount = _amount(run, [translated] if run.input == "nucleotide" and not contigs else files, enough)
    if amount is None:
        return Planned(f"{name}: its files cannot be read.", 0, 0, False)
    about = "" if amount.exact else "about "
    if contigs:
        size = f"{about}{number(amount.records, 'contig')}, {number(amount.letters, 'base')}"
        return Planned(f"{name}: {size}; proteins are known once translated.", 0, 0, False)
    if not amount.records:
        return Planned(f"{name}: no protein in it.", 0, 0, True)
    chunks = chunk_count(amount.unique_letters, amount.unique, *run.chunk_size)
    line = (
        f"{name}: {about}{number(amount.records, 'protein')}, {number(amount.letters, 'residue')}; "
        f"not split yet, about {number(chunks, 'chunk')}."
    )
    tokens, disk, sure = amount.unique_letters + SPECIAL_TOKENS * amount.unique, 0, 0
    if kept := _kept(run, state):
        disk = amount.unique_letters + kept.chunk_bytes(amount.unique, amount.unique_letters)
        disk += kept.table_bytes(amount.records, amount.letters)
        sure = (disk if amount.exact else disk // 2) if kept.is_exact else 0
    return Planned(line, tokens, chunks, False, (), disk, sure)


def _amount(run: RunConfig, files: Sequence[Path], enough: int) -> Amount | None:
    """What is in the files; None when one cannot be read, which the split will say better."""
    try:
        return estimate(files, skip_repeated_ids=run.policies.duplicate_ids == "skip", enough=enough)
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
        return ""  # nothing is made up; once the first chunk is done it is known
    return (
        f"About {duration(tokens / known)} of GPU time on one NVIDIA H200 (measured there with torch 2.11: {known:,} "
        "tokens/s). Other GPUs differ: once the first chunk is done, ask again."
    )


FEW = 4
"""Samples that are told one by one where a run begins; a dry run tells more."""

RESIDUES_OF_A_PROTEIN = 300
"""About; of a chunk that is not cut yet."""


def plan_text(run: RunConfig, state: RunState, planned: Sequence[Planned], most: int = FEW) -> str:
    """The plan in words, ``most`` samples in a line each: chunks, what is done, time, disk, memory, download, logs."""
    lines = [planned_text(run, [part for part in planned if part.exact or not part.of_bases], most)]
    takes = _memory(run, planned) + _download(run.model, is_there=state.weights_stale() is None)
    if run.calls is not None:
        takes += _download(run.calls.model, is_there=(run.resources / f"{run.calls.model.name}.safetensors").exists())
    lines.append(" ".join([*takes, f"Logs: {run.results / 'logs'}, .snakemake/log."]))
    return "\n".join(lines)


def _memory(run: RunConfig, planned: Sequence[Planned]) -> list[str]:
    """What an embed job takes of the host's memory."""
    tokens = max((part.tokens for part in planned if part.chunks and not part.of_bases), default=0)
    if not tokens:
        return []
    residues = min(tokens, run.chunk_size.residues)
    chunk = ChunkManifest("", 1 + residues // RESIDUES_OF_A_PROTEIN, residues, 0, "")
    needed = embed_memory_mb(
        planning_architecture(run.model),
        chunk,
        layers=len(run.embedding.layers),
        vectors=run.embedding.vectors,
        per_residue="per_residue" in run.embedding.pooling,
        gpus=run.gpus_per_job if run.device == "gpu" else 0,
    )
    return [f"Memory: about {size(needed * MEGABYTE)} a job."]


def _download(model: ModelRef, *, is_there: bool) -> list[str]:
    """What has to be fetched for a released model that is neither prepared nor in torch hub's cache."""
    if is_there or model.place is not None or model.name in DEMO_WARNINGS:
        return []
    folder = os.getenv("TORCH_HOME") or Path(os.getenv("XDG_CACHE_HOME") or Path.home() / ".cache", "torch")
    if Path(folder, "hub", "checkpoints", f"{model.name}.pt").exists():
        return []
    much = f", {size(RELEASED[model.name].size)}" if model.name in RELEASED else ""
    return [f"Download: {model.name}{much}, unless huggingface_hub's cache has it."]
