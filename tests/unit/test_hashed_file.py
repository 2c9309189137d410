"""A file that is hashed as it is written: its bytes and their sha256 agree, and no thread's error is lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.test_tables import write_table
from virnucpro.base import atomic
from virnucpro.base.atomic import GuardedFile
from virnucpro.base.digest import FileProof
from virnucpro.base.errors import UserError
from virnucpro.storage import hashed_file
from virnucpro.storage.hashed_file import HashedFile


@pytest.mark.parametrize("small", [0, 100, hashed_file.SMALL])
def test_the_checksum_is_that_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    """Pieces of all sizes, arrays too, more than may wait, and the system writing less than it was given."""
    monkeypatch.setattr(hashed_file, "SMALL", small)
    monkeypatch.setattr(hashed_file, "WAITING", 1000)
    monkeypatch.setattr(atomic, "FLUSH", 3000)
    right = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: right(descriptor, data[:700]))
    chance = np.random.default_rng(0)
    pieces = [chance.integers(0, 256, size, np.uint8) for size in (0, 1, 699, 700, 701, 5000, 3, *range(40))]
    with HashedFile(tmp_path / "file") as file:
        for piece in pieces:
            assert file.write(piece.data) == len(piece)
        proof = file.finish()
    assert (tmp_path / "file").read_bytes() == np.concatenate(pieces).tobytes()
    assert proof == FileProof.of(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "when"),
    [("npy", "write"), ("parquet", "write"), *((name, "fsync") for name in ("npy", "parquet", "hdf5", "virnucpro_pt"))],
)
def test_a_disk_that_fills_up_meanwhile_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, when: str
) -> None:
    """Found where bytes are written, or by the thread that brings them to the disk, and by nobody afterwards."""
    monkeypatch.setattr(atomic, "FLUSH", 1)
    calls = iter(range(10**6))

    def full(*arguments: Any) -> Any:
        if when == "write" or next(calls) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, when, full)
    with pytest.raises(UserError, match=r"^cannot write .*/table: No space left on device; free space there"):
        write_table(name, tmp_path / "table", 100, residues=name != "virnucpro_pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["npy", "parquet"])
def test_hashing_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    class Broken:
        def update(self, data: bytes) -> None:
            raise MemoryError

    monkeypatch.setattr(hashed_file, "SMALL", 0)
    monkeypatch.setattr("virnucpro.storage.hashed_file.sha256", Broken)
    with pytest.raises(MemoryError):
        write_table(name, tmp_path / "table", 100, residues=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [HashedFile, GuardedFile])
def test_an_error_of_the_last_flush_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[HashedFile | GuardedFile]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "FLUSH", 1)
    monkeypatch.setattr(os, "fsync", full)
    with kind(tmp_path / "file") as file:
        file.write(b"once")
        with pytest.raises(OSError, match="No space left"):
            file.finish()
