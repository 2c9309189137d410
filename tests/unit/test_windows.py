"""Windows over long proteins: every residue covered, overlap kept, the three policies."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.base.settings import LongProteins
from virnucpro.chunking.cost import embedded_residues
from virnucpro.engine.batch import coverage, cut_into_pieces


def window_starts(length: int, longest: int, overlap: int) -> list[int]:
    pieces = cut_into_pieces(np.array([3, length]), LongProteins("window", longest, overlap))
    starts: list[int] = pieces.start[pieces.row == 1].tolist()
    return starts


@given(length=st.integers(1, 9000), longest=st.integers(1, 1500), data=st.data())
def test_windows_cover_every_residue_and_share_the_overlap(length: int, longest: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, longest - 1))
    if length > 200 * (longest - overlap):
        length = 200 * (longest - overlap)
    starts = window_starts(length, longest, overlap)
    size = min(length, longest)
    assert starts[0] == 0
    assert starts[-1] + size == length
    steps = np.diff(starts)
    assert (steps >= 1).all()
    if len(starts) > 1:
        assert (steps <= longest - overlap).all(), "neighbours share at least the overlap"
        assert steps.max() - steps.min() <= 1, "windows are spread evenly"
        assert (len(starts) - 2) * (longest - overlap) + longest < length, "one window fewer would not reach"


def test_the_usual_cases() -> None:
    assert window_starts(1022, 1022, 511) == [0]
    assert window_starts(1023, 1022, 511) == [0, 1]
    assert window_starts(1533, 1022, 511) == [0, 511]
    assert window_starts(1534, 1022, 511) == [0, 256, 512]
    assert window_starts(5, 1, 0) == [0, 1, 2, 3, 4]


def test_policies() -> None:
    lengths = np.array([10, 3, 4])
    window = cut_into_pieces(lengths, LongProteins("window", 4, 2))
    assert window.row.tolist() == [0, 0, 0, 0, 1, 2]
    assert window.start.tolist() == [0, 2, 4, 6, 0, 0]
    assert window.length.tolist() == [4, 4, 4, 4, 3, 4]
    truncated = cut_into_pieces(lengths, LongProteins("truncate", 4, 2))
    assert truncated.row.tolist() == [0, 1, 2]
    assert truncated.length.tolist() == [4, 3, 4]
    full = cut_into_pieces(lengths, LongProteins("full", 4, 2))
    assert full.length.tolist() == [10, 3, 4]
    assert full.start.tolist() == [0, 0, 0]
    embedded = {
        policy: embedded_residues(lengths, LongProteins(policy, 4, 2)).tolist()
        for policy in ("window", "truncate", "full")
    }
    assert embedded == {"window": [10, 3, 4], "truncate": [4, 3, 4], "full": [10, 3, 4]}
    assert [len(column) for column in cut_into_pieces(lengths[:0], LongProteins("window", 4, 2))] == [0, 0, 0]


def test_coverage_counts_windows_a_residue() -> None:
    assert coverage(np.array([0, 2, 4, 6]), np.array([4, 4, 4, 4]), 10).tolist() == [1, 1, 2, 2, 2, 2, 2, 2, 1, 1]
