"""The front page of a run: what was embedded, with what, how long it took, anything odd, and the maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from virnucpro.base.atomic import atomic_path
from virnucpro.base.text import duration, number
from virnucpro.report.chunk_table import chunk_rows
from virnucpro.report.page import Fact, Front, Map, front_page
from virnucpro.report.read import Sample, read_samples
from virnucpro.report.summary import (
    ALL,
    attention_of,
    chunks_by,
    chunks_of,
    count_of,
    notes,
    one_or_list,
    precisions_of,
    row,
    said_of_calls,
    shapes_of,
    treated,
    work_of,
)
from virnucpro.report.times import times_of

MAP_PICTURE, MAP_PAGE = Path("plots", "map.png"), Path("plots", "map.html")
"""In a sample's folder."""

MAP_OF_ALL = "map.html"
"""Beside the front page."""


def write_front_page(page: Path, reports: Sequence[Path], calls: Sequence[Path] = ()) -> None:
    """Write the page, whole or not at all; maps that have been drawn are shown.

    Args:
        reports: the ``embeddings.json`` of each sample.
        calls: the ``calls.json`` of each sample, where contigs were called.

    Raises:
        UserError: a report is missing or damaged, or the page cannot be written.
    """
    samples = read_samples(reports, calls)
    front = Front(
        title=_title(samples),
        facts=_facts(samples),
        notes=notes(samples),
        odd=[*treated(samples), *said_of_calls(samples)] or ["Each was embedded whole, as it came in."],
        maps=[
            Map(
                sample.name,
                sample.folder / MAP_PICTURE,
                Path(os.path.relpath(sample.folder / MAP_PAGE, page.parent)).as_posix(),
            )
            for sample in samples
            if sample.chunks and (sample.folder / MAP_PICTURE).is_file()
        ],
        map_of_all=MAP_OF_ALL if len(samples) > 1 and page.with_name(MAP_OF_ALL).is_file() else "",
        rows=[row([sample], sample.name) for sample in samples] + [row(samples, ALL)],
        chunks=chunk_rows(samples),
        origin=_origin(samples),
    )
    with atomic_path(page) as temporary:
        temporary.write_text(front_page(front), encoding="utf-8")


def _title(samples: Sequence[Sample]) -> str:
    names = number(len(samples), "sample") if len(samples) > 1 else f"sample {samples[0].name}"
    models = ", ".join(dict.fromkeys(sample.provenance.model for sample in samples))
    return f"{number(count_of(samples, 'records'), 'protein')} of {names}, embedded with {models}"


def _facts(samples: Sequence[Sample]) -> list[Fact]:
    settings = samples[0].provenance
    runs = chunks_of(samples)
    work, times = work_of(runs), times_of(runs)
    unique, records = count_of(samples, "unique"), count_of(samples, "records")
    longest = max((sample.counts.get("longest", 0) for sample in samples), default=0)
    facts = [
        Fact("proteins", f"{records:,}", f"{unique:,} different" if unique < records else "all different"),
        Fact("residues", f"{count_of(samples, 'residues'):,}", f"the longest protein has {longest:,}"),
        Fact("vectors", shapes_of(settings), f"layer {', '.join(map(str, settings.layers))} of {settings.model}"),
    ]
    if not runs:
        return facts
    rate = f"{work.tokens_per_second:,.0f} tokens/s a job"
    if times is not None:
        facts += [
            Fact("time", duration(times.seconds), _period(times.began, times.ended)),
            Fact("speed", f"{unique / max(times.seconds, 1e-3):,.1f} proteins/s", rate),
        ]
    else:
        facts.append(Fact("speed", rate, f"{duration(work.seconds)} of all jobs together"))
    hosts = chunks_by(samples, lambda chunk: chunk.host)
    where = (
        f"on {one_or_list(hosts, 'chunk')}, {number(work.chunks, 'job')}" if any(hosts) else number(work.chunks, "job")
    )
    return [
        *facts,
        Fact("device", one_or_list(chunks_by(samples, lambda chunk: chunk.device), "chunk"), where),
        Fact(
            "number format",
            one_or_list(precisions_of(samples), "protein"),
            one_or_list(chunks_by(samples, attention_of), "chunk"),
        ),
        Fact(
            "padding avoided",
            f"{100 * work.padding_avoided:.0f} %",
            "of the tokens that padded batches would have computed",
        ),
    ]


def _period(began: str, ended: str) -> str:
    """``2026-11-28T00:45:06.250Z`` and an hour later as ``2026-11-28 00:45 to 01:45 UTC``."""
    day, start, end = began[:10], began[11:16], ended[11:16]
    if ended[:10] != day:
        end = f"{ended[:10]} {end}"
    return f"{day} {start} UTC" if end == start else f"{day} {start} to {end} UTC"


def _origin(samples: Sequence[Sample]) -> dict[str, str]:
    """What the numbers were computed from, and with which command; values that differ by sample are all there."""
    settings = [sample.provenance for sample in samples]
    versions = [
        ", ".join(f"{name} {version}" for name, version in each.items()) for one in settings for each in one.versions
    ]
    texts = {
        "model": [one.model for one in settings],
        "weights, sha256": [one.weights_sha256 for one in settings],
        "prepared from": [one.source for one in settings],
        "versions": versions,
        "command": [one.command for one in settings],
    }
    return {name: "; ".join(dict.fromkeys(filter(None, values))) for name, values in texts.items()}
