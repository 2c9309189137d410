"""Digests of files are kept for as long as the files stay what they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virnucpro.base import digest
from virnucpro.base.digest import FileDigests, file_sha256


def test_a_file_that_is_written_twice_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two changes within a tick of the file system's clock leave the same size, inode and times."""
    monkeypatch.setattr(digest, "_signature", str)  # a clock that does not tick
    path, digests = tmp_path / "a", FileDigests(tmp_path / "store")
    for number in range(20):
        path.write_text(f"{number:03d}")
        assert digests.sha256(path) == file_sha256(path)
    digests.save()
    path.write_text("xyz")
    assert FileDigests(tmp_path / "store").sha256(path) == file_sha256(path)


def test_a_file_that_lies_there_for_a_while_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = tmp_path / "a", tmp_path / "store"
    path.write_text("one")
    monkeypatch.setattr(digest, "CLOCK_TICK", 0)
    digests = FileDigests(store)
    found = digests.sha256(path)
    digests.save()

    def never(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    with monkeypatch.context() as patched:
        patched.setattr(digest, "file_sha256", never)
        assert FileDigests(store).sha256(path) == found
    older = tmp_path / "b"
    older.write_text("two")
    os.utime(older, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    older.replace(path)
    assert FileDigests(store).sha256(path) == file_sha256(path) != found
