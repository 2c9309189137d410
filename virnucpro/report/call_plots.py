"""Plots of one sample's calls: scores along its strongest contigs, their distributions, and counts by call."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from virnucpro.base.records import read_record
from virnucpro.calling.state import CALL_WORDS, CallsRecord
from virnucpro.report.style import (
    COLOURS,
    LARGE,
    QUIET,
    empty_figure,
    horizontal_bars,
    house_style,
    label_bars,
    new_figure,
    short,
    write,
)

MOST_TRACKS = 6
"""Contigs whose scores are drawn along them."""

BINS = 50

OTHERS_COLOUR, VIRUS_COLOUR = COLOURS[0], COLOURS[4]

NOTHING_SCORED = "no contig was scored"


@dataclass(frozen=True)
class CalledContig:
    """A row of ``contigs.tsv``, of a contig that was scored."""

    id: str
    length: int
    windows: int
    score: float
    call: str


@dataclass(frozen=True)
class Track:
    """Scores of a contig's windows: where each begins and ends, and its largest scores, (m,) each."""

    contig: CalledContig
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    others: NDArray[np.float32]
    virus: NDArray[np.float32]


def scored_contigs(path: Path) -> Iterator[CalledContig]:
    """The contigs of ``contigs.tsv`` that have a score."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["score"]:
                windows = int(row["scored_windows"])
                yield CalledContig(row["contig"], int(row["length"]), windows, float(row["score"]), row["call"])


def strongest(contigs: Sequence[CalledContig], most: int = MOST_TRACKS) -> list[CalledContig]:
    """The contigs with the highest scores; of equal ones, those with more windows."""
    return sorted(contigs, key=lambda contig: (-contig.score, -contig.windows, contig.id))[:most]


def read_scores(path: Path, chosen: Sequence[CalledContig]) -> tuple[NDArray[np.int64], list[Track]]:
    """The histogram of all frames' virus scores, (BINS,), and the tracks of some contigs; a part of the file at a time.

    Args:
        path: ``frames.parquet``.
    """
    counts = np.zeros(BINS, np.int64)
    rows: dict[str, dict[int, list[float]]] = {contig.id: {} for contig in chosen}
    names = ["contig", "window", "start", "end", "score_others", "score_virus"]
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=names):
            columns = [batch.column(name) for name in names]
            counts += np.histogram(columns[-1].to_numpy(), BINS, (0, 1))[0]
            ids = columns[0].to_pylist()
            for row in [row for row, name in enumerate(ids) if name in rows]:
                window, start, end, others, virus = (column[row].as_py() for column in columns[1:])
                known = rows[ids[row]].get(window, [start, end, 0.0, 0.0])
                rows[ids[row]][window] = [
                    *(min(known[0], start), max(known[1], end)),
                    *(max(known[2], others), max(known[3], virus)),
                ]
    tracks = []
    for contig in chosen:
        start, end, others, virus = np.array(list(rows[contig.id].values())).reshape(-1, 4).T
        scores = others.astype(np.float32), virus.astype(np.float32)
        tracks.append(Track(contig, start.astype(np.int64), end.astype(np.int64), *scores))
    return counts, tracks


def plot_tracks(name: str, tracks: Sequence[Track]) -> Figure:
    """The largest scores of each window, where it lies on its contig; a row for each contig."""
    with house_style():
        figure, panels = new_figure(len(tracks), height=1.0 + 1.75 * len(tracks))
        for place, (axes, track) in enumerate(zip(panels, tracks, strict=True)):
            for scores, colour, style, label in (
                (track.others, OTHERS_COLOUR, ":", "others"),
                (track.virus, VIRUS_COLOUR, "-", "virus"),
            ):
                axes.hlines(scores, track.start, track.end, color=colour, linestyle=style, linewidth=3, label=label)
            axes.set(xlim=(0, track.contig.length), ylim=(-0.05, 1.05), yticks=(0, 0.5, 1), ylabel="score")
            axes.xaxis.set_major_formatter(LARGE)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            contig = track.contig
            title = f"{short(contig.id)}: {contig.call}, score {contig.score:.2f}"
            axes.set_title(title if place else f"{short(name)}: the strongest contigs, window by window\n{title}")
        panels[-1].set_xlabel("place on the contig (bases)")
        panels[-1].legend(loc="upper left", bbox_to_anchor=(0, -0.45), ncols=2, borderaxespad=0.0)
        return figure


def plot_scores(name: str, frames: NDArray[np.int64], contigs: Sequence[float], limits: tuple[float, float]) -> Figure:
    """Histograms of the frames' virus scores and of the contigs' scores.

    Args:
        frames: counts in :data:`BINS` equal parts of 0 to 1.
        limits: under the first a contig is non-viral, over the second viral.
    """
    with house_style():
        figure, (above, below) = new_figure(2, height=7)
        edges = np.linspace(0, 1, BINS + 1)
        above.bar(edges[:-1], frames, np.diff(edges), align="edge", color=VIRUS_COLOUR)
        above.set(xlabel="virus score of a frame", ylabel="frames", xlim=(0, 1))
        above.set_title(f"{short(name)}: scores of {int(frames.sum()):,} frames")
        below.hist(contigs, bins=BINS, range=(-1, 1), color=OTHERS_COLOUR)
        for limit in limits:
            below.axvline(limit, color=QUIET, linestyle="--", linewidth=1.5)
        below.set(xlabel="score of a contig (dashed: non-viral below, viral above)", ylabel="contigs", xlim=(-1, 1))
        below.set_title(f"Scores of {len(contigs):,} contigs")
        for axes in (above, below):
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_formatter(LARGE)
        return figure


def plot_counts(name: str, record: CallsRecord) -> Figure:
    """How many contigs got each call; of unscored ones, for each reason."""
    with house_style():
        counts = {call: record.calls.get(call, 0) for call in CALL_WORDS[:-1]}
        counts |= {f"unscored:\n{reason}": count for reason, count in record.unscored.items()}
        figure, (axes,) = new_figure(height=1.6 + 0.6 * len(counts))
        bars = horizontal_bars(axes, list(counts), list(counts.values()), color=OTHERS_COLOUR)
        label_bars(axes, bars, [f"{count:,}" for count in counts.values()], max(counts.values()))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(LARGE)
        warning = f"\n{record.warning}" if record.warning else ""
        axes.set(xlabel="contigs", title=f"{short(name)}: calls of {sum(record.calls.values()):,} contigs{warning}")
        return figure


def plot_calls(record: Path, outputs: Mapping[str, Sequence[Path]]) -> None:
    """Draw the calls of one sample.

    Args:
        record: its ``calls.json``, beside which its tables are.
        outputs: for each name of :data:`virnucpro.report.CALL_PLOTS` the files to write (.svg, .png).

    Raises:
        UserError: the record is missing or damaged, or an output cannot be written.
    """
    calls, folder = read_record(record, CallsRecord), record.parent
    name = folder.parent.name
    contigs = list(scored_contigs(folder / "contigs.tsv"))
    write(plot_counts(name, calls), outputs["call_counts"])
    if not contigs:
        for plot in ("call_tracks", "call_scores"):
            write(empty_figure(f"{short(name)}: calls", NOTHING_SCORED), outputs[plot])
        return
    frames, tracks = read_scores(folder / "frames.parquet", strongest(contigs))
    limits = (float(calls.made_from["rule non_viral_under"]), float(calls.made_from["rule viral_over"]))
    write(plot_tracks(name, tracks), outputs["call_tracks"])
    write(plot_scores(name, frames, [contig.score for contig in contigs], limits), outputs["call_scores"])
