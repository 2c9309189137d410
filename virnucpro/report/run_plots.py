"""Plots of a whole run: how fast its chunks were, by what they ran on, and what packing saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from virnucpro.base.text import number
from virnucpro.report.samples import Sample, attention_of, chunks_by, chunks_of, read_sample, work_for, work_of
from virnucpro.report.style import (
    COLOURS,
    LARGE,
    MANY_POINTS,
    empty_figure,
    horizontal_bars,
    house_style,
    label_bars,
    looks,
    new_figure,
    write,
)
from virnucpro.storage.report_record import ChunkRun

MOST_SAMPLES = 25
"""Samples that a bar chart has room for; of more, those with the most tokens are shown."""

BAR = 0.34
"""Inches of a horizontal bar."""


def where_it_ran(chunk: ChunkRun) -> str:
    """Device and attention, by which the plots tell chunks apart."""
    return f"{chunk.device}, {attention_of(chunk)}"


def plot_throughput(samples: Sequence[Sample]) -> Figure:
    """Tokens per second of each chunk, and of all chunks of each kind of device and attention together."""
    with house_style():
        kinds = list(chunks_by(samples, where_it_ran))
        figure, (each, together) = new_figure(2, height=5.4 + 0.7 * len(kinds), ratios=[4.2, 1.2 + 0.7 * len(kinds)])
        runs = chunks_of(samples)
        for kind, (colour, marker) in looks(kinds).items():
            positions = [position for position, run in enumerate(runs, start=1) if where_it_ran(run) == kind]
            each.scatter(
                positions,
                [runs[position - 1].statistics.tokens_per_second for position in positions],
                s=28 if len(runs) < 300 else 9,
                color=colour,
                marker=marker,
                label=kind,
                rasterized=len(runs) > MANY_POINTS,
            )
        each.set(xlabel="chunk (in the order of samples)", ylabel="tokens/s", title="Throughput of each chunk")
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
        each.yaxis.set_major_formatter(LARGE)
        each.set_ylim(0, 1.08 * max([run.statistics.tokens_per_second for run in runs] + [1e-9]))
        each.set_xlim(0.5 - 0.02 * len(runs), len(runs) + 0.5 + 0.02 * len(runs))
        each.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.2), borderaxespad=0.0)
        of_kind = [[run for run in runs if where_it_ran(run) == kind] for kind in kinds]
        rates = [work_of(own).tokens_per_second for own in of_kind]
        colours = [colour for colour, _ in looks(kinds).values()]
        bars = horizontal_bars(together, _folded(kinds), rates, color=colours)
        labels = [f"{rate:,.0f}  ({number(len(own), 'chunk')})" for rate, own in zip(rates, of_kind, strict=True)]
        label_bars(together, bars, labels, max(rates))
        together.xaxis.set_major_locator(MaxNLocator(4))
        together.xaxis.set_major_formatter(LARGE)
        together.set_xlabel("tokens/s of one job (all its tokens by all its time)")
        together.set_title("Throughput by device and attention")
        return figure


def _folded(names: Sequence[str]) -> list[str]:
    """Device above attention, attention above its kernel."""
    return [name.replace(", ", ",\n", 1) if ", " in name else name.replace(" (", "\n(") for name in names]


def plot_packing(samples: Sequence[Sample]) -> Figure:
    """For each sample the tokens that were computed and the padding that packing saved."""
    with house_style():
        shown = _largest(samples)
        works = [work_for(sample) for sample in shown]
        figure, axes = _parts(
            shown,
            ("tokens computed", [work.tokens for work in works]),
            ("padding avoided", [work.tokens / (1 - work.padding_avoided) - work.tokens for work in works]),
            [f"{100 * work.padding_avoided:.0f} % avoided" for work in works],
        )
        axes.set_xlabel("tokens (residues, and two a protein or window)")
        axes.set_title(_of("Padding that packing saved", samples), pad=30)
        return figure


Part = tuple[str, Sequence[float]]
"""What a colour stands for, and its size in each bar."""


def _parts(samples: Sequence[Sample], left: Part, right: Part, labels: Sequence[str]) -> tuple[Figure, Axes]:
    """A bar for each sample, of two parts."""
    figure, (axes,) = new_figure(height=2.6 + BAR * len(samples))
    names = [sample.name for sample in samples]
    horizontal_bars(axes, names, left[1], color=COLOURS[0], label=left[0])
    bars = horizontal_bars(axes, names, right[1], left=left[1], color=COLOURS[1], label=right[0])
    label_bars(axes, bars, labels, max(a + b for a, b in zip(left[1], right[1], strict=True)))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(LARGE)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    return figure, axes


def _largest(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the most tokens, in the run's order."""
    ranked = sorted(samples, key=lambda sample: -work_for(sample).tokens)[:MOST_SAMPLES]
    return [sample for sample in samples if sample in ranked]


def _of(title: str, samples: Sequence[Sample]) -> str:
    return title if len(samples) <= MOST_SAMPLES else f"{title} ({MOST_SAMPLES} largest of {len(samples)} samples)"


def plot_run(reports: Sequence[Path], outputs: Mapping[str, Sequence[Path]]) -> None:
    """Draw the whole run.

    Args:
        reports: ``embeddings.json`` of each sample.
        outputs: for each name of :data:`virnucpro.report.RUN_PLOTS` the files to write (.svg, .png).

    Raises:
        UserError: a report is missing or damaged, or an output cannot be written.
    """
    samples = [read_sample(path) for path in reports]
    draw = {"throughput": plot_throughput, "packing": plot_packing}
    is_empty = not any(sample.chunks for sample in samples)
    for name, paths in outputs.items():
        write(empty_figure(f"The run: {name}") if is_empty else draw[name](samples), paths)
