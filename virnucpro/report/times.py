"""When a run's chunks were embedded, and how long that took on the wall's clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from virnucpro.base.text import utc
from virnucpro.storage.report_record import ChunkRun


@dataclass(frozen=True)
class Times:
    """The first moment and the last one, as :func:`virnucpro.base.text.utc` writes them, and the seconds between.

    ``seconds`` counts moments in which at least one job loaded its model or embedded: neither jobs beside each other
    twice, nor the days between a run and the call that finished it.
    """

    began: str
    ended: str
    seconds: float


def times_of(chunks: Iterable[ChunkRun]) -> Times | None:
    """The times of some chunks; None where they are of a version that did not note them."""
    spans = []
    for chunk in chunks:
        if not chunk.ended:
            return None
        end = datetime.fromisoformat(chunk.ended).timestamp()
        spans.append((end - chunk.statistics.seconds - chunk.statistics.load_seconds, end))
    if not spans:
        return None
    seconds, until = 0.0, min(spans)[0]
    for begin, end in sorted(spans):
        seconds += max(0.0, end - max(begin, until))
        until = max(until, end)
    return Times(utc(min(spans)[0]), utc(until), seconds)
