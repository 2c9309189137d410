"""An output is there whole or not at all, also when the writer fails, is killed, or the disk is full."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from virnucpro.base.atomic import atomic_directory, atomic_path, scratch_directory
from virnucpro.base.errors import UserError


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "table.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == target.parent
        assert not target.exists()
    assert target.read_text() == "whole"
    assert [p.name for p in target.parent.iterdir()] == ["table.txt"]


def write_half_and_fail(writer: Callable[[Path], AbstractContextManager[Path]], target: Path) -> None:
    with writer(target) as temporary:
        (temporary / "new" if temporary.is_dir() else temporary).write_text("half")
        raise RuntimeError


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "table.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError):
        write_half_and_fail(atomic_path, target)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.txt"]


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("x")
        with atomic_directory(tmp_path / "folder") as temporary:
            (temporary / "a").write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "chunks"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(RuntimeError):
        write_half_and_fail(atomic_directory, target)
    assert [p.name for p in target.iterdir()] == ["old"]
    with atomic_directory(target) as temporary:
        (temporary / "new").write_text("new")
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["chunks"]


KILLED = """
import os, signal, sys
from pathlib import Path
from virnucpro.base.atomic import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "table.txt"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False, cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1
    elsewhere = tmp_path / ".table.txt.othernode.1.abc.tmp"  # another machine's writer may still be at work
    elsewhere.write_text("x")
    assert socket.gethostname() != "othernode"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
    assert {p.name for p in tmp_path.iterdir()} == {"table.txt", elsewhere.name}


def test_a_live_writer_of_the_same_file_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "table.txt"
    with atomic_path(target) as first:
        first.write_text("first")
        with atomic_path(target) as second:
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"


def test_a_parent_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with (
        pytest.raises(UserError, match=r"cannot write .*results/table.txt"),
        atomic_path(tmp_path / "results/table.txt"),
    ):
        pass


def test_a_folder_of_the_same_name_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    with pytest.raises(UserError, match="a folder of that name"), atomic_path(tmp_path / "table") as temporary:
        temporary.write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["table"]


def fill_the_disk(target: Path) -> None:
    """/dev/full refuses every write as a full disk does."""
    with atomic_path(target), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*table: No space left"):
        fill_the_disk(tmp_path / "table")
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_goes_with_its_block_or_with_the_next_writer(tmp_path: Path) -> None:
    target = tmp_path / "out"
    code = f"""
import os, signal
from pathlib import Path
from virnucpro.base.atomic import scratch_directory
with scratch_directory(Path({str(target)!r})) as folder:
    (folder / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with scratch_directory(target) as folder:
        assert list(tmp_path.iterdir()) == [folder], "what the killed one left is gone"
        with atomic_path(target) as beside:
            beside.write_text("whole")
        assert folder.is_dir(), "our own writer leaves it alone"
    assert list(tmp_path.iterdir()) == [target]
