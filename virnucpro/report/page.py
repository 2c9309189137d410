"""The summary as a page of HTML, for the report and for browsers: what must be known first, then the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 1rem; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.note { border-left: 5px solid #D55E00; background: #fdf1ea; padding: .6rem .8rem; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
td.number, thead th + th { text-align: right; font-variant-numeric: tabular-nums; }
th[scope=row] { position: sticky; left: 0; background: #fff; }
"""

MOST_COLUMNS = 50
"""Samples shown side by side; the table of all is in the TSV."""


def summary_page(rows: Sequence[Mapping[str, str]], notes: Sequence[str], text: str) -> str:
    """One self-contained page.

    Args:
        rows: the summary's rows; the last is that of the whole run.
        notes: what must be known before the numbers are used.
        text: the run's closing text.
    """
    shown = rows[:1] if len(rows) == 2 else [rows[-1], *rows[:-1][:MOST_COLUMNS]]
    names = [name for name in rows[-1] if name not in ("sample", "notes")]
    head = "".join(f'<th scope="col">{escape(row["sample"])}</th>' for row in shown)
    body = "\n".join(
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th>{"".join(_cell(row[name]) for row in shown)}</tr>'
        for name in names
    )
    warnings = "\n".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    left_out = max(0, len(rows) - 1 - MOST_COLUMNS)
    more = f"<p>{left_out:,} more samples are in summary.tsv.</p>" if left_out else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>virnucpro: summary</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Summary of the run</h1>
{warnings}
<pre>{escape(text.rstrip())}</pre>
<h2>Samples</h2>
<div class="wide"><table>
<thead><tr><th scope="col">sample</th>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
{more}
</body>
</html>
"""


def _cell(value: str) -> str:
    try:
        number = float(value)
    except ValueError:
        short = value if len(value) <= 80 else f"{value[:77]}..."
        return f"<td>{escape(short)}</td>"
    return f'<td class="number">{number:,.15g}</td>' if number == number else f"<td>{escape(value)}</td>"
