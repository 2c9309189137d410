"""The front page of a run: what was embedded, with what, how long it took, anything odd, and the maps."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
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


def write_front_page(page: Path, reports: Sequence[Path], calls: Sequence[Path] = ()) -> None:
    """Write the page, whole or not at all; maps that have been drawn are shown.

    Args:
        reports: the ``embeddings.json`` of each sample.
        calls: the ``calls.json`` of each sample, where contigs were called.

    Raises:
        UserError: a report is missing or damaged, or the page cannot be written.
    """
    samples = read_samples(reports, calls)
    text = _page(samples, page.parent)
    with atomic_path(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _page(samples: Sequence[Sample], folder: Path) -> str:
    """One self-contained page; on narrow screens the rows of its tables are shown as blocks, so all stay in sight.

    Args:
        folder: where it will be.
    """
    style = files("virnucpro.report").joinpath("page.css").read_text(encoding="utf-8")
    title = escape(_title(samples))
    odd = [*treated(samples), *said_of_calls(samples)] or ["Each was embedded whole, as it came in."]
    rows, total = [row([sample], sample.name) for sample in samples], row(samples, ALL)
    parts = [
        f"<h1>{title}</h1>",
        *(f'<p class="note">{escape(note)}</p>' for note in notes(samples)),
        f'<dl class="facts">{"".join(_facts(samples))}</dl>',
        "<h2>What was done to the proteins</h2>",
        f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in odd)}</ul>",
        *_maps(samples, folder),
        *_samples(rows, total),
        _details("Where the numbers come from", _listed(_origin(samples))),
        *_chunks(chunk_rows(samples)),
        _details("Every number of every sample", *(_numbers(each) for each in [total, *rows[:MOST_ROWS]])),
    ]
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>virnucpro: {title}</title>
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


def _title(samples: Sequence[Sample]) -> str:
    names = number(len(samples), "sample") if len(samples) > 1 else f"sample {samples[0].name}"
    models = ", ".join(dict.fromkeys(sample.provenance.model for sample in samples))
    return f"{number(count_of(samples, 'records'), 'protein')} of {names}, embedded with {models}"


def _facts(samples: Sequence[Sample]) -> list[str]:
    """The answers at the top of the page."""
    settings = samples[0].provenance
    runs = chunks_of(samples)
    work, times = work_of(runs), times_of(runs)
    unique, records = count_of(samples, "unique"), count_of(samples, "records")
    longest = max((sample.counts.get("longest", 0) for sample in samples), default=0)
    facts = [
        _fact("proteins", f"{records:,}", f"{unique:,} different" if unique < records else "all different"),
        _fact("residues", f"{count_of(samples, 'residues'):,}", f"the longest protein has {longest:,}"),
        _fact("vectors", shapes_of(settings), f"layer {', '.join(map(str, settings.layers))} of {settings.model}"),
    ]
    if not runs:
        return facts
    rate = f"{work.tokens_per_second:,.0f} tokens/s a job"
    if times is not None:
        facts += [
            _fact("time", duration(times.seconds), _period(times.began, times.ended)),
            _fact("speed", f"{unique / max(times.seconds, 1e-3):,.1f} proteins/s", rate),
        ]
    else:
        facts.append(_fact("speed", rate, f"{duration(work.seconds)} of all jobs together"))
    hosts = chunks_by(samples, lambda chunk: chunk.host)
    where = f"on {one_or_list(hosts, 'chunk')}, {number(len(runs), 'job')}" if any(hosts) else number(len(runs), "job")
    return [
        *facts,
        _fact("device", one_or_list(chunks_by(samples, lambda chunk: chunk.device), "chunk"), where),
        _fact(
            "number format",
            one_or_list(precisions_of(samples), "protein"),
            one_or_list(chunks_by(samples, attention_of), "chunk"),
        ),
        _fact(
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


def _fact(name: str, value: str, more: str = "") -> str:
    """One answer: ``value`` large, ``more`` below it in small letters."""
    below = f"<dd>{escape(more)}</dd>" if more else ""
    return f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd>{below}</div>'


def _maps(samples: Sequence[Sample], folder: Path) -> list[str]:
    """The maps that have been drawn, each as a picture from which its page is opened."""
    shown = [sample for sample in samples if sample.chunks and (sample.folder / MAP_PICTURE).is_file()]
    if not shown:
        return []
    figures = []
    for sample in shown[:MOST_MAPS]:
        picture = base64.b64encode((sample.folder / MAP_PICTURE).read_bytes()).decode("ascii")
        link = escape(quote(Path(os.path.relpath(sample.folder / MAP_PAGE, folder)).as_posix()))
        name = escape(sample.name)
        figures.append(
            f'<figure><a href="{link}"><img alt="map of {name}" src="data:image/png;base64,{picture}"></a>'
            f'<figcaption><a href="{link}">{name}: search it, point at it</a></figcaption></figure>'
        )
    more = len(shown) - MOST_MAPS
    said = [f"<p>{more:,} more maps are in the samples' folders, as plots/map.html.</p>"] if more > 0 else []
    if len(samples) > 1 and (folder / MAP_OF_ALL).is_file():
        said.append(f'<p><a href="{MAP_OF_ALL}">All samples on one map</a></p>')
    return ["<h2>Maps of the embeddings</h2>", f'<div class="maps">{"".join(figures)}</div>', *said]


def _samples(rows: Sequence[Mapping[str, str]], total: Mapping[str, str]) -> list[str]:
    different = [name for name in SOMETIMES[:1] if any(row[name] != row["proteins"] for row in rows)]
    happened = [name for name in SOMETIMES[1:] if any(row[name] not in ("0", "") for row in rows)]
    called = [name for name in total if name.startswith("contigs_")]
    columns = ["sample", ALWAYS[0], *different, *ALWAYS[1:], *happened, *called]
    last = [total] if len(rows) > 1 else []
    table = _table(columns, [*rows[:MOST_ROWS], *last])
    return ["<h2>Samples</h2>", table, *_left_out(len(rows), "samples", "summary.tsv")]


def _chunks(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return []
    columns = ["sample", "chunk", "device", "host", "attention_kernel", "precision", "proteins", "tokens"]
    columns += ["seconds", "tokens_per_second", "peak_memory_gib"]
    table = _table(columns, rows[:MOST_ROWS])
    return [_details("Every chunk", table, *_left_out(len(rows), "chunks", "chunks.tsv"))]


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
