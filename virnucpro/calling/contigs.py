"""From scores of frames to windows, as VirNucPro merges them, and from windows to a call for each contig.

VirNucPro itself calls no contigs. The rule here is the one that broadinstitute's viral-ngs applies to its windows
(``classify/virnucpro.py``): each window's difference of scores, weighted by the root of its own size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro.calling.frames import JOINT, OTHERS, VIRUS, Frames
from virnucpro.calling.rule import CallRule


@dataclass(frozen=True)
class WindowScores:
    """Windows that have a stop-free frame, m of them, in input order.

    Attributes:
        ids: ``{contig}_chunk_{window}``.
        contig: (m,) int64, row of the contig.
        window: (m,) int64, from 1.
        start, end: (m,) int64, from 0, half open.
        most: (m, 2) float32, the largest score of a frame for others and for virus.
    """

    ids: list[str]
    contig: NDArray[np.int64]
    window: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    most: NDArray[np.float32]

    @property
    def is_virus(self) -> NDArray[np.bool_]:
        """VirNucPro's answer for a window; where both are equal it is a virus."""
        return self.most[:, VIRUS] >= self.most[:, OTHERS]


@dataclass(frozen=True)
class ContigCall:
    """What is said of one contig; ``score`` is the weighted difference, from -1 to 1, None where nothing was scored."""

    scored_windows: int
    viral_windows: int
    surely_viral: int
    surely_not: int
    ambiguous: int
    score: float | None
    call: str


def window_scores(frames: Frames) -> WindowScores:
    """The largest score of each class among a window's frames, which stand together in input order."""
    begins = (np.diff(frames.contig, prepend=-1) != 0) | (np.diff(frames.window, prepend=-1) != 0)
    first = np.flatnonzero(begins)
    most = np.maximum.reduceat(frames.scores, first) if first.size else np.empty((0, 2), np.float32)
    ids = [f"{frames.contigs[frames.contig[row]].id}{JOINT}{frames.window[row]}" for row in first]
    start, end = frames.window_start[first], frames.window_end[first]
    return WindowScores(ids, frames.contig[first], frames.window[first], start, end, most)


def contig_calls(frames: Frames, windows: WindowScores, rule: CallRule) -> list[ContigCall]:
    """A call for every contig, scored or not, in input order.

    For windows with largest scores s0 (others) and s1 (virus), d = s1 - s0, a contig's score is
    sum(d sqrt|d|) / sum(sqrt|d|), and 0 where every d is 0.
    """
    s0, s1 = windows.most[:, OTHERS].astype(float), windows.most[:, VIRUS].astype(float)
    delta = s1 - s0
    weight = np.sqrt(np.abs(delta))
    columns = (
        np.ones(len(delta)),
        windows.is_virus,
        (s1 > rule.sure_over) & (s0 < rule.sure_under),
        (s0 > rule.sure_over) & (s1 < rule.sure_under),
        (s0 > rule.ambiguous_over) & (s1 > rule.ambiguous_over),
        delta * weight,
        weight,
    )
    sums = np.stack([np.bincount(windows.contig, column, len(frames.contigs)) for column in columns], axis=1)
    calls = []
    for *counts, total, weights in sums.tolist():
        scored, viral, surely_viral, surely_not, ambiguous = map(int, counts)
        score = None if not scored else total / weights if weights else 0.0
        calls.append(ContigCall(scored, viral, surely_viral, surely_not, ambiguous, score, _word(score, rule)))
    return calls


def _word(score: float | None, rule: CallRule) -> str:
    if score is None:
        return "unscored"
    return "viral" if score > rule.viral_over else "non-viral" if score < rule.non_viral_under else "ambiguous"


def viral_regions(windows: WindowScores) -> Iterator[tuple[int, int, int, float]]:
    """Runs of neighbouring windows that VirNucPro calls viral: contig's row, start, end, largest virus score."""
    rows = np.flatnonzero(windows.is_virus)
    follows = (np.diff(windows.contig[rows], prepend=-1) == 0) & (np.diff(windows.window[rows], prepend=-1) == 1)
    for run in np.split(rows, np.flatnonzero(~follows)):
        if run.size:
            first, last = run[0], run[-1]
            most = float(windows.most[run, VIRUS].max())
            yield int(windows.contig[first]), int(windows.start[first]), int(windows.end[last]), most
