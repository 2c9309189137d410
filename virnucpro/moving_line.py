"""One line that moves on a terminal, or a few plain ones in a file: per cent, time, and what is done."""

from __future__ import annotations

import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

from virnucpro.base.text import clock_time, fold, printable

WIDTH = 80
"""Columns in a file, and at least on a terminal; at most :data:`WIDEST`."""

WIDEST = 120

SECONDS, STEP, FIRST = 600.0, 1 / 3, 5.0
"""In a file: a line each so many seconds, or each such share done; none before the first seconds are over."""


class MovingLine:
    """Shows how far something is, and writes whole lines above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None
        self._began = time.monotonic()
        self._spoken = (0.0, 0.0)

    @property
    def moves(self) -> bool:
        """Whether it is shown on a terminal."""
        return self._bar is not None

    def begin(self) -> None:
        """Show it from now on."""
        self._began = time.monotonic()
        if self._stream.isatty():
            self._bar = _bar(self._stream)

    def show(self, share: float, words: str) -> None:
        """Say that a share (0 to 1) is done, and what that is in words."""
        if self._bar is not None:
            self._bar.n = round(1000 * share)
            self._bar.set_postfix_str(words)
            return
        seconds = time.monotonic() - self._began
        before, said = self._spoken
        if seconds - before >= SECONDS or (seconds - before >= FIRST and share - said >= STEP and share < 1):
            self._spoken = (seconds, share)
            self.write(f"{clock_time(seconds):>7}  {100 * share:3.0f} %  {words}")

    def write(self, *texts: str, indent: str = "", is_folded: bool = True) -> None:
        """Write lines above it, folded to the terminal's width; of others' texts nothing steers the terminal."""
        width = WIDTH
        if self._stream.isatty():
            width = min(max(shutil.get_terminal_size().columns, WIDTH), WIDEST)
        with self.away():
            for line in (line for text in texts for line in text.splitlines()):
                whole = indent + printable(line)
                for part in fold(whole, width) if is_folded else [whole]:
                    self._stream.write(part + "\n")
            self._stream.flush()

    def away(self) -> AbstractContextManager[Any]:
        """A block in which others write to the same terminal."""
        return nullcontext() if self._bar is None else self._bar.external_write_mode(self._stream)

    def close(self) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _bar(stream: TextIO) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:  # with conda, Snakemake's own Python may have none
        return None
    shape = "{percentage:3.0f} % |{bar:20}| {elapsed}{postfix}"
    return tqdm(total=1000, bar_format=shape, file=stream, dynamic_ncols=True, leave=False, mininterval=0.1)
