"""How far a job is: log lines at a steady pace, and a bar where a person watches."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any


class Progress:
    """Counts what is done and says so every ``interval`` seconds."""

    def __init__(
        self,
        proteins: int,
        residues: int,
        tokens: int,
        *,
        where: str,
        logger: logging.Logger,
        interval: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: the totals; ``where`` names device and attention."""
        self.totals = (proteins, residues, tokens)
        self.done = [0, 0, 0]
        self._where = where
        self._logger = logger
        self._interval = interval
        self._clock = clock
        self._started = self._spoken = clock()
        self._bar = _bar(tokens)

    def add(self, proteins: int, residues: int, tokens: int) -> None:
        """Count one batch."""
        for place, count in enumerate((proteins, residues, tokens)):
            self.done[place] += count
        if self._bar is not None:
            self._bar.update(tokens)
        now = self._clock()
        if now - self._spoken >= self._interval:
            self._spoken = now
            self._logger.info(self.line())

    def line(self) -> str:
        """One line: per cent, proteins, residues, rate, time left, device, attention."""
        seconds = max(self._clock() - self._started, 1e-9)
        rate = self.done[2] / seconds
        left = (self.totals[2] - self.done[2]) / rate if rate else 0.0
        share = 100 * self.done[2] / max(self.totals[2], 1)
        return (
            f"{share:3.0f} %  {self.done[0]:,} of {self.totals[0]:,} proteins, {self.done[1]:,} residues, "
            f"{rate:,.0f} tokens/s, {clock_time(left)} left, {self._where}"
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def clock_time(seconds: float) -> str:
    """``75`` as ``1:15``, ``3700`` as ``1:01:40``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _bar(tokens: int) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=tokens, unit="tok", unit_scale=True, dynamic_ncols=True, leave=False)
