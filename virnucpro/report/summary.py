"""The summary of a run: sums over chunks and samples, a table for programs, and the text that closes the run."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.base.text import duration, fold, listed, number
from virnucpro.calling.state import CALL_WORDS
from virnucpro.report.samples import (
    Sample,
    attention_of,
    chunks_by,
    chunks_of,
    count_of,
    notes,
    precisions_of,
    read_samples,
    times_of,
    work_for,
    work_of,
)
from virnucpro.storage.report_record import ChunkRun, Provenance

GIB = 1 << 30

ALL = "(all)"
"""The name of the last row, that of the whole run; no sample can be named so."""

MOST_NAMED = 10
"""Samples whose tables the closing text names; the others' are where one looks for them then."""

WIDTH = 80

NOTE = "NOTE"
"""What a note of the closing text stands under."""


def summarise(
    reports: Sequence[Path],
    table: Path,
    text: Path,
    chunks: Path,
    calls: Sequence[Path] = (),
    *,
    logger: logging.Logger,
) -> None:
    """Write the run's summary as tables and text, each whole or not at all.

    Args:
        reports: the ``embeddings.json`` of each sample.
        table: TSV to write: one row a sample and one, named ``(all)``, for the run; units are in the columns' names.
        text: what the run closes with in the terminal.
        chunks: TSV to write with one row a chunk: where it ran, with what, and how fast.
        calls: the ``calls.json`` of each sample, where contigs were called.

    Raises:
        UserError: a report is missing or not one of the merge's, or an output cannot be written.
    """
    if not reports:
        raise UserError("there is no report to summarise: name at least one sample")
    samples = read_samples(reports, calls)
    rows = [row([sample], sample.name) for sample in samples] + [row(samples, ALL)]
    closing = closing_text(samples, table.with_suffix(".html"))
    _write_table(table, list(rows[0]), rows)
    _write_table(chunks, ["sample", *CHUNK_COLUMNS], chunk_rows(samples))
    with atomic_path(text) as temporary:
        temporary.write_text(closing, encoding="utf-8")
    logger.info("the run in numbers: %s, in words: %s", table, text)


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def row(samples: Sequence[Sample], name: str) -> dict[str, str]:
    """One row of the table: what was embedded, what was done to it, how fast and with what."""
    work = work_for(samples[0]) if name != ALL else work_of(chunks_of(samples))
    numbers = {
        "proteins": count_of(samples, "records"),
        "unique_proteins": count_of(samples, "unique"),
        "residues": count_of(samples, "residues"),
        "unique_residues": count_of(samples, "unique_residues"),
        "longest_residues": max(sample.counts.get("longest", 0) for sample in samples),
        "skipped_records": count_of(samples, "skipped"),
        "replaced_residues": count_of(samples, "replaced"),
        "replaced_proteins": count_of(samples, "replaced_records"),
        "windowed_proteins": count_of(samples, "windowed"),
        "truncated_proteins": count_of(samples, "truncated"),
        "recomputed_proteins": sum(chunk.statistics.recomputed for chunk in chunks_of(samples)),
        "reused_proteins": sum(chunk.proteins for chunk in _reused(samples, name)),
        "chunks": len(chunks_of(samples)),
        "tokens": work.tokens,
    }
    times = times_of(chunks_of(samples))
    called = calls_of(samples)
    if called is not None:
        numbers |= {f"contigs_{call.replace('-', '_')}": called[0][call] for call in CALL_WORDS}
    return {
        "sample": name,
        **{column: str(value) for column, value in numbers.items()},
        "job_seconds": f"{work.seconds:.3f}",
        "tokens_per_second": f"{work.tokens_per_second:.0f}",
        "began": times.began if times else "",
        "ended": times.ended if times else "",
        "wall_seconds": f"{times.seconds:.3f}" if times else "",
        "proteins_per_second": f"{count_of(samples, 'unique') / max(times.seconds, 1e-3):.2f}" if times else "",
        "padding_avoided_percent": f"{100 * work.padding_avoided:.2f}",
        "peak_memory_gib": f"{work.peak_memory_bytes / GIB:.3f}",
        "out_of_memory_retries": str(work.out_of_memory_retries),
        "attention": ", ".join(chunks_by(samples, attention_of)),
        "device": ", ".join(chunks_by(samples, lambda chunk: chunk.device)),
        "host": ", ".join(filter(None, chunks_by(samples, lambda chunk: chunk.host))),
        "precision": ", ".join(precisions_of(samples)),
        "model": ", ".join(dict.fromkeys(sample.provenance.model for sample in samples)),
        "weights_sha256": ", ".join(dict.fromkeys(sample.provenance.weights_sha256 for sample in samples)),
        "weights_source": "; ".join(dict.fromkeys(sample.provenance.source for sample in samples)),
        "layers": ", ".join(str(layer) for layer in samples[0].provenance.layers),
        "pooling": ", ".join(samples[0].provenance.pooling),
        "notes": "; ".join(notes(samples)),
    }


def _reused(samples: Sequence[Sample], name: str = "") -> list[ChunkRun]:
    """The chunks whose rows were taken from earlier results; those of the run count whole."""
    chunks = chunks_of(samples)
    if name in ("", ALL):
        chunks = [replace(chunk, proteins=chunk.statistics.proteins) for chunk in chunks]
    return [chunk for chunk in chunks if chunk.reused_from]


def closing_text(samples: Sequence[Sample], summary: Path) -> str:
    """What was embedded, how fast, with what, what was done to it, and where the files are; ends with a line feed."""
    settings = samples[0].provenance
    proteins, unique = count_of(samples, "records"), count_of(samples, "unique")
    same = f" ({unique:,} different)" if unique < proteins else ""
    names = f"{len(samples)} samples" if len(samples) > 1 else f"sample {samples[0].name}"
    head = (
        f"Embedded {number(proteins, 'protein')}{same} of {names}, {number(count_of(samples, 'residues'), 'residue')}, "
        f"with {', '.join(dict.fromkeys(sample.provenance.model for sample in samples))}."
    )
    layers = (
        f"layer {settings.layers[0]}" if len(settings.layers) == 1 else f"layers {', '.join(map(str, settings.layers))}"
    )
    precisions = precisions_of(samples)
    devices = one_or_list(chunks_by(samples, lambda chunk: chunk.device), "chunk")
    attentions = one_or_list(chunks_by(samples, attention_of), "chunk")
    lines = [
        ("values", f"{layers}, {shapes_of(settings)}"),
        ("speed", speed(samples)),
        ("computed", f"on {devices} in {one_or_list(precisions, 'protein')}, by {attentions}"),
    ]
    lines += [("sequences", part) for part in treated(samples)]
    lines += [("calls", part) for part in said_of_calls(samples)]
    lines += [(NOTE, note) for note in notes(samples)]
    lines += [("table", str(path)) for sample in samples[:MOST_NAMED] for path in sample.tables.values()]
    if len(samples) > MOST_NAMED:
        lines.append(("table", f"and those of {len(samples) - MOST_NAMED:,} more samples, likewise"))
    lines += [("calls in", f"{sample.calls_folder}/contigs.tsv") for sample in samples if sample.calls_folder]
    lines += [("summary", f"{summary}; with all plots: add --report report.html")]
    folded = (fold(part, WIDTH, f"  {name:<10} ", " " * 13) for name, part in lines)
    return "\n".join([*fold(head, WIDTH, below=""), *chain.from_iterable(folded)]) + "\n"


def shapes_of(settings: Provenance) -> str:
    """What there is of each protein: ``mean over residues (2560 numbers a protein)``."""
    shapes = [f"mean over residues ({settings.embed_dim} numbers a protein)"] * ("mean" in settings.pooling)
    shapes += [f"<cls> ({settings.embed_dim} numbers a protein)"] * ("bos" in settings.pooling)
    shapes += [f"maximum over residues ({settings.embed_dim} numbers a protein)"] * ("max" in settings.pooling)
    shapes += [f"{settings.embed_dim} numbers a residue"] * ("per_residue" in settings.pooling)
    return " and ".join(shapes)


def speed(samples: Sequence[Sample]) -> str:
    """Rate, tokens and time of the embed jobs."""
    chunks = chunks_of(samples)
    work = work_of(chunks)
    return (
        f"{work.tokens_per_second:,.0f} tokens/s a job ({number(work.tokens, 'token')} in {duration(work.seconds)}, "
        f"{number(len(chunks), 'chunk')})"
    )


def treated(samples: Sequence[Sample]) -> list[str]:
    """What was done to some of the sequences, a line each; nothing for what did not happen."""

    def count(name: str, of: str = "protein") -> str:
        return number(count_of(samples, name), of)

    over = f"over {number(samples[0].provenance.long_proteins.longest, 'residue')}"
    saved = count_of(samples, "records") - count_of(samples, "unique")
    retries = work_of(chunks_of(samples)).out_of_memory_retries
    said = []
    if count_of(samples, "skipped"):
        said.append(f"{count('skipped', 'record')} without residues or with a repeated id: skipped.tsv lists them")
    for source in dict.fromkeys(chunk.reused_from for chunk in _reused(samples)):
        runs = [chunk.statistics for chunk in _reused(samples) if chunk.reused_from == source]
        amount = f"{number(sum(run.proteins for run in runs), 'different protein')}, "
        amount += number(sum(run.residues for run in runs), "residue")
        said.append(f"{amount}, were not computed but taken from {source}")
    if saved:
        said.append(f"{number(saved, 'protein')} had the sequence of another one and took its embedding")
    if count_of(samples, "replaced"):
        changed = f"{count('replaced', 'residue')} of {count('replaced_records')}"
        said.append(f"{changed} without a token of their own ('*' inside, J) became X")
    if count_of(samples, "windowed"):
        said.append(f"{count('windowed')} {over} ran in overlapping windows")
    if count_of(samples, "truncated"):
        said.append(f"{count('truncated')} {over} lost what is beyond")
    if again := sum(chunk.statistics.recomputed for chunk in chunks_of(samples)):
        said.append(f"{number(again, 'protein')} overflowed in half precision and were recomputed in a wider format")
    if retries:
        said.append(f"memory ran out {number(retries, 'time')} and batches were made smaller")
    return said


def calls_of(samples: Iterable[Sample]) -> tuple[Counter[str], Counter[str]] | None:
    """Contigs by call, and unscored ones by reason; None where nothing was called."""
    records = [sample.calls for sample in samples if sample.calls is not None]
    if not records:
        return None
    calls: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for record in records:
        calls.update(record.calls)
        reasons.update(record.unscored)
    return calls, reasons


def said_of_calls(samples: Sequence[Sample]) -> list[str]:
    """How many contigs got each call, and how many could not be scored and why; nothing where none was called."""
    found = calls_of(samples)
    if found is None:
        return []
    calls, reasons = found
    scored = calls.total() - calls["unscored"]
    each = ", ".join(f"{calls[call]:,} {call}" for call in CALL_WORDS[:-1])
    said = [f"{scored:,} of {number(calls.total(), 'contig')} scored: {each}"]
    said += [f"{number(count, 'contig')} not scored: {reason}" for reason, count in reasons.items()]
    return said


def one_or_list(counts: Counter[str], of: str) -> str:
    """The one name there is, or all of them with their counts."""
    return next(iter(counts)) if len(counts) == 1 else listed(counts, of)


CHUNK_COLUMNS: dict[str, Callable[[ChunkRun], str]] = {
    "chunk": lambda run: run.chunk,
    "host": lambda run: run.host,
    "ended": lambda run: run.ended,
    "device": lambda run: run.device,
    "attention": lambda run: run.attention,
    "attention_kernel": lambda run: run.attention_kernel,
    "precision": lambda run: ", ".join(run.precisions),
    "proteins": lambda run: str(run.statistics.proteins),
    "residues": lambda run: str(run.statistics.residues),
    "tokens": lambda run: str(run.statistics.tokens),
    "seconds": lambda run: f"{run.statistics.seconds:.3f}",
    "tokens_per_second": lambda run: f"{run.statistics.tokens_per_second:.1f}",
    "padding_avoided_percent": lambda run: f"{100 * run.statistics.padding_avoided:.2f}",
    "peak_memory_gib": lambda run: f"{run.statistics.peak_memory_bytes / GIB:.3f}",
    "out_of_memory_retries": lambda run: str(run.statistics.out_of_memory_retries),
    "recomputed_proteins": lambda run: str(run.statistics.recomputed),
}
"""Of the table of chunks, behind ``sample``: where each ran, with what, and how fast."""


def chunk_rows(samples: Sequence[Sample]) -> list[dict[str, str]]:
    """The rows of the table of chunks; ``sample`` says whose sequences a chunk has."""
    users: dict[ChunkRun, list[str]] = {}
    for sample in samples:
        for chunk in sample.chunks:
            users.setdefault(replace(chunk, proteins=0), []).append(sample.name)
    return [
        {"sample": names[0] if len(names) == 1 else f"({len(names)} samples)"}
        | {column: text_of(chunk) for column, text_of in CHUNK_COLUMNS.items()}
        for chunk, names in users.items()
    ]
