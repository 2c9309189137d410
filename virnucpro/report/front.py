"""The front page of a run: what was embedded, with what, how long it took, anything odd, and the maps."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from virnucpro.base.atomic import atomic_path
from virnucpro.base.text import duration, number
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
    work_of,
)
from virnucpro.report.summary import ALL, chunk_rows, one_or_list, row, said_of_calls, shapes_of, treated

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


@dataclass(frozen=True)
class Fact:
    """One answer at the top of the page: ``value`` large, ``more`` below it in small letters."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class Map:
    """A sample's map: the picture to show, and the page to open from it, by its path from the front page's folder."""

    sample: str
    picture: Path
    page: str


@dataclass(frozen=True)
class Front:
    """What the page says.

    ``map_of_all`` is the page of all samples' map, or empty. ``notes`` must be known before numbers are used, ``odd``
    is what was done to some of the proteins. ``rows`` are the summary's, the last that of the whole run; ``chunks``
    those of the table of chunks. ``origin`` are long values, by their names.
    """

    title: str
    facts: Sequence[Fact]
    notes: Sequence[str]
    odd: Sequence[str]
    maps: Sequence[Map]
    map_of_all: str
    rows: Sequence[Mapping[str, str]]
    chunks: Sequence[Mapping[str, str]]
    origin: Mapping[str, str]


MOST_ROWS = 200
"""Samples, and chunks, that the page lists; all are in the TSVs."""

MOST_MAPS = 12

ALWAYS = ("proteins", "residues", "longest_residues", "chunks", "tokens_per_second")
"""Columns of the samples' table; others of :data:`SOMETIMES` stand there where any sample has something to say."""

SOMETIMES = (
    "unique_proteins",
    "skipped_records",
    "replaced_proteins",
    "windowed_proteins",
    "truncated_proteins",
    "recomputed_proteins",
    "out_of_memory_retries",
)


def front_page(front: Front) -> str:
    """One self-contained page; on narrow screens the rows of its tables are shown as blocks, so all stay in sight."""
    style = files("virnucpro.report").joinpath("page.css").read_text(encoding="utf-8")
    parts = [
        f"<h1>{escape(front.title)}</h1>",
        *(f'<p class="note">{escape(note)}</p>' for note in front.notes),
        f'<dl class="facts">{"".join(map(_fact, front.facts))}</dl>',
        "<h2>What was done to the proteins</h2>",
        f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in front.odd)}</ul>",
        *_maps(front),
        *_samples(front),
        _details("Where the numbers come from", _listed(front.origin)),
        *_chunks(front),
        _details(
            "Every number of every sample", *(_numbers(row) for row in [front.rows[-1], *_shown(front.rows[:-1])])
        ),
    ]
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>virnucpro: {escape(front.title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>
// Inside of a report the page lies nowhere, and what is beside it in the folder of results can't be opened.
if (!/^(file|https?):/.test(location.protocol))
  for (const link of document.querySelectorAll("a[href]")) link.removeAttribute("href");
</script>
</body>
</html>
"""


def _fact(fact: Fact) -> str:
    more = f"<dd>{escape(fact.more)}</dd>" if fact.more else ""
    return f'<div><dt>{escape(fact.name)}</dt><dd class="value">{escape(fact.value)}</dd>{more}</div>'


def _maps(front: Front) -> list[str]:
    if not front.maps:
        return []
    figures = []
    for each in front.maps[:MOST_MAPS]:
        picture = base64.b64encode(each.picture.read_bytes()).decode("ascii")
        figures.append(
            f'<figure><a href="{escape(quote(each.page))}"><img alt="map of {escape(each.sample)}" '
            f'src="data:image/png;base64,{picture}"></a><figcaption><a href="{escape(quote(each.page))}">'
            f"{escape(each.sample)}: search it, point at it</a></figcaption></figure>"
        )
    more = len(front.maps) - MOST_MAPS
    said = [f"<p>{more:,} more maps are in the samples' folders, as plots/map.html.</p>"] if more > 0 else []
    every = f'<p><a href="{escape(front.map_of_all)}">All samples on one map</a></p>'
    said += [every] if front.map_of_all else []
    return ["<h2>Maps of the embeddings</h2>", f'<div class="maps">{"".join(figures)}</div>', *said]


def _samples(front: Front) -> list[str]:
    rows = front.rows[:-1]
    different = [name for name in SOMETIMES[:1] if any(row[name] != row["proteins"] for row in rows)]
    happened = [name for name in SOMETIMES[1:] if any(row[name] not in ("0", "") for row in rows)]
    called = [name for name in front.rows[-1] if name.startswith("contigs_")]
    columns = ["sample", ALWAYS[0], *different, *ALWAYS[1:], *happened, *called]
    last = [front.rows[-1]] if len(rows) > 1 else []
    return [
        "<h2>Samples</h2>",
        _table(columns, [*_shown(rows), *last]),
        *_left_out(len(rows), "samples", "summary.tsv"),
    ]


def _chunks(front: Front) -> list[str]:
    if not front.chunks:
        return []
    columns = ["sample", "chunk", "device", "host", "attention_kernel", "precision", "proteins", "tokens"]
    columns += ["seconds", "tokens_per_second", "peak_memory_gib"]
    table = _table(columns, _shown(front.chunks))
    return [_details("Every chunk", table, *_left_out(len(front.chunks), "chunks", "chunks.tsv"))]


def _shown(rows: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
    return rows[:MOST_ROWS]


def _left_out(count: int, what: str, where: str) -> list[str]:
    return [f"<p>{count - MOST_ROWS:,} more {what} are in {where}.</p>"] if count > MOST_ROWS else []


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    head = "".join(f'<th scope="col">{_words(name)}</th>' for name in columns)
    first, *others = columns
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[first])}</th>{"".join(_cell(name, row[name]) for name in others)}</tr>'
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _cell(name: str, value: str) -> str:
    shown, is_number = _value(value)
    kind = ' class="number"' if is_number else ""
    return f'<td{kind} data-name="{_words(name)}">{shown}</td>'


def _value(value: str) -> tuple[str, bool]:
    """The value as it is shown, and whether it is a number."""
    try:
        number = float(value)
    except ValueError:
        return escape(value), False
    return (f"{number:,.15g}", True) if number == number else (escape(value), False)


def _words(name: str) -> str:
    return escape(name.replace("_", " "))


def _details(title: str, *inner: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n" + "\n".join(inner) + "\n</details>"


def _listed(values: Mapping[str, str]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{_words(name)}</dt><dd>{_value(text)[0]}</dd>" for name, text in values.items())
        + "</dl>"
    )


def _numbers(row: Mapping[str, str]) -> str:
    values = {name: text for name, text in row.items() if name not in ("sample", "notes") and text}
    return f'<h3>{escape(row["sample"])}</h3><div class="columns">{_listed(values)}</div>'
