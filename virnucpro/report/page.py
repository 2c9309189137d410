"""The front page of a run as HTML, for the report and for browsers: what a reader asks first, then every number."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote


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
