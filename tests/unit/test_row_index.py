"""The index over digests: every row is found, and nothing else, however it was built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from virnucpro.base.records import read_record
from virnucpro.storage import row_index
from virnucpro.storage.row_index import NONE, RECORD, IndexedFile, IndexRecord, RowIndex, Rows


def digests(seed: int, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), np.uint8)


def files(*numbers: int) -> list[IndexedFile]:
    return [IndexedFile(f"{number}.safetensors", "c" * 64) for number in numbers]


def assert_found(index: RowIndex | Rows, wanted: NDArray[np.uint8], number: int) -> None:
    order = np.random.default_rng(0).permutation(len(wanted))
    file, row = index.find(wanted[order])
    assert (file == number).all()
    np.testing.assert_array_equal(row, order)


@pytest.mark.parametrize("at_once", [1 << 22, 3000], ids=["in memory", "spilled"])
def test_what_was_added_is_found_and_nothing_else(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_index, "SORTED_AT_ONCE", at_once)
    index = RowIndex(tmp_path / "index")
    assert (index.find(digests(9, 5))[0] == NONE).all()
    index.extend(files(0, 1), [(0, digests(0, 9000)[:5000]), (0, digests(0, 9000)[5000:]), (1, digests(1, 4321))])
    index.extend(files(2), [(2, digests(2, 100))])
    assert sum(read_record(tmp_path / "index" / RECORD, IndexRecord).segments.values()) == 13421
    for again in (index, RowIndex(tmp_path / "index")):
        assert [file.path for file in again.files] == [f"{number}.safetensors" for number in range(3)]
        for number, count in ((0, 9000), (1, 4321), (2, 100)):
            assert_found(again, digests(number, count), number)
        assert (again.find(digests(3, 5000))[0] == NONE).all()
        assert [len(part) for part in again.find(digests(0, 0))] == [0, 0]


def test_segments_are_made_into_one_before_there_are_many(tmp_path: Path) -> None:
    index = RowIndex(tmp_path / "index")
    for number in range(2 * row_index.MOST_SEGMENTS):
        index.extend(files(number), [(number, digests(number, 50))])
        assert len(list((tmp_path / "index").glob("segment_*"))) <= row_index.MOST_SEGMENTS
    for number in range(2 * row_index.MOST_SEGMENTS):
        assert_found(index, digests(number, 50), number)


def test_equal_digests_and_equal_halves(tmp_path: Path) -> None:
    """Of equal digests the first is given; those that share their first half are told apart, over a block's end too."""
    half = digests(0, 6000)
    half[4000:4060, :8] = half[4000, :8]
    for index in (RowIndex(tmp_path / "index"), None):
        if index is not None:
            index.extend(files(0, 1), [(0, half), (1, half)])
        assert_found(index or Rows([(0, half), (1, half)]), half, 0)
    other = half[4000:4001].copy()
    other[0, 15] ^= 1
    assert (RowIndex(tmp_path / "index").find(other)[0] == NONE).all()


def broken(folder: Path) -> Iterator[Path]:
    record = folder / RECORD
    record.write_text(record.read_text()[:-30])
    yield record
    segment = next(folder.glob("segment_*"))
    segment.write_bytes(segment.read_bytes()[:-8])
    yield segment


def test_a_damaged_index_is_begun_again(tmp_path: Path) -> None:
    index = RowIndex(tmp_path / "index")
    index.extend(files(0), [(0, digests(0, 50))])
    for _ in broken(tmp_path / "index"):
        again = RowIndex(tmp_path / "index")
        assert not again.files
        again.extend(files(0), [(0, digests(0, 50))])
        assert_found(again, digests(0, 50), 0)
