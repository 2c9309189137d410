"""Numbers, times and values in words."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from reprlib import Repr
from typing import Any


def clock_time(seconds: float) -> str:
    """``75`` as ``1:15``, ``3700`` as ``1:01:40``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def listed(counts: Counter[str], of: str) -> str:
    """``flash_attention_2 (3 chunks), standard_attention (1 chunk)``."""
    return ", ".join(f"{name} ({number(count, of)})" for name, count in counts.items())


def number(count: int, of: str) -> str:
    """A count with its noun.

    >>> number(1, "chunk"), number(1234, "chunk")
    ('1 chunk', '1,234 chunks')
    """
    return f"{count:,} {of}" + ("" if count == 1 else "s")


def size(count: float) -> str:
    """Bytes in words.

    >>> size(512), size(1_999_000), size(3.21e9)
    ('512 bytes', '2.0 MB', '3.2 GB')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return number(round(count), "byte")


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(0.31), duration(125), duration(12_000)
    ('0.3 s', '2 min 5 s', '3 h 20 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def utc(seconds: float) -> str:
    """A time, in seconds since 1970, as ISO 8601 has it, to the millisecond.

    >>> utc(1_795_826_706.25)
    '2026-11-28T00:45:06.250Z'
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def fold(text: str, width: int, before: str = "", below: str = "    ") -> list[str]:
    """A text's lines, the first set in by ``before``, the others by ``below``; paths and words stay whole."""
    return textwrap.wrap(
        text, width, initial_indent=before, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    )


def printable(text: str) -> str:
    """The text with what a terminal or a log would act on written out: control and bidirectional signs, line ends.

    >>> printable("a\\x1b[31mb\\nERROR")
    'a\\\\x1b[31mb\\\\nERROR'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def brief(text: str) -> str:
    """A path or pattern as the user typed it, cut where it is longer than a sentence bears."""
    return text if len(text) <= 300 else short(text)


def short(value: Any) -> str:
    """The value as it would be written, cut where it is long or nested deeply; of unknown objects their kind alone.

    >>> short(object()), short([[1, 2], "a"]), short(10**5000)
    ('<object>', "[[1, 2], 'a']", '<a whole number of 5000 digits or about>')
    """
    text = _SHORT.repr(value)
    return text if len(text) <= 200 else f"{text[:120]}...{text[-40:]}"


def some(names: Sequence[str], of: str) -> str:
    """The first of several names, and how many there are.

    >>> some(["a.weight"], "tensor"), some(["a.weight", "b.weight", "c.bias"], "tensor")
    ("'a.weight'", "'a.weight' and 2 other tensors")
    """
    more = f" and {number(len(names) - 1, f'other {of}')}" if len(names) > 1 else ""
    return short(names[0]) + more


class _Short(Repr):
    """Never asks an object that it does not know for its own words, which may be endless."""

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 1000:
            return f"<a whole number of {round(x.bit_length() * 0.30103)} digits or about>"
        return super().repr_int(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, bytes):
            return repr(bytes(x[: self.maxother]))
        if x is None or isinstance(x, (bool, float, complex, PurePath)):
            return super().repr_instance(x, level)
        return f"<{type(x).__name__}>"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
