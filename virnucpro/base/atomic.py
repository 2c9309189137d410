"""Files and folders that are there whole or not at all: write beside, flush to disk, rename.

The temporary name begins with a dot, ends in ``.tmp`` and holds the process id, so that two writers
never share one, and so that what a killed writer (or a machine without power) leaves behind is
recognised and removed by the next one."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from virnucpro.base.errors import UserError
from virnucpro.base.limits import why_not_written

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def sync(path: Path) -> None:
    """Flush one file or one folder's entries to the disk.

    Some network file systems refuse to sync a folder; the rename is then as safe as they make it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


FLUSH = 1 << 28
"""Bytes after which the disk is told to begin, so that little is left to flush at the end."""


class EarlyFlush:
    """Has a file brought to the disk by a thread while it is being written; errors are raised by a later call."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pool = ThreadPoolExecutor(1, "flush")
        self._running: Future[None] | None = None
        self._unflushed = 0

    def wrote(self, size: int) -> None:
        """So many more bytes were written.

        Raises:
            OSError: earlier ones could not be brought to the disk.
        """
        self._unflushed += size
        if self._unflushed >= FLUSH and (self._running is None or self._running.done()):
            self.wait()
            self._unflushed = 0
            self._running = self._pool.submit(os.fsync, self._descriptor)

    def wait(self) -> None:
        """Wait for what has begun.

        Raises:
            OSError: see :meth:`wrote`.
        """
        if self._running is not None:
            self._running.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def is_still(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that ``path`` names now: it may have been replaced or removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _is_left_over(entry: Path, prefix: str) -> bool:
    """Whether a temporary name was left by a process of this machine that no longer runs."""
    words = entry.name.removeprefix(prefix).split(".")
    if len(words) < 3 or words[0] != _host() or not words[1].isdecimal():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _host() -> str:
    return socket.gethostname().replace(".", "-") or "localhost"


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds; nothing there is fine too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def _temporary(path: Path) -> Path:
    """Make the parent folder, clear what dead processes left there for ``path``, and give a new name beside it.

    A name, and no file: a signal that comes when a file has been made and its name is not known yet would leave it.
    """
    prefix = f".{path.name[:80]}."
    with _said_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for entry in path.parent.iterdir():
            if entry.name.startswith(prefix) and entry.name.endswith(".tmp") and _is_left_over(entry, prefix):
                remove(entry)
    return path.with_name(f"{prefix}{_host()}.{os.getpid()}.{secrets.token_hex(8)}.tmp")


def cannot_write(path: Path, error: OSError) -> UserError:
    """The sentence for a place that cannot be written to."""
    return UserError(f"cannot write {path}: {why_not_written(error)}")


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Turn what the system says into :func:`cannot_write`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write one file to; rename it to ``path`` when the block ends well.

    When the block raises, the temporary file is removed and whatever was at ``path`` stays as it was.
    Suffixes are kept at the end of the temporary name's stem only; open it by format, not by suffix.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with _said_of(path):
            temporary.touch(0o600, exist_ok=False)
        yield temporary
        # Until here only the owner reads it; results are for the group as the umask says.
        temporary.chmod(0o666 & ~_umask())
        sync(temporary)
        if path.is_dir() and not path.is_symlink():
            raise UserError(f"cannot write {path}: a folder of that name is there; move it away")
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        remove(temporary)
        if error.errno in _DISK_FULL:
            raise cannot_write(path, error) from None
        raise
    except BaseException:
        remove(temporary)
        raise


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Like :func:`atomic_path` for a folder: fill the temporary folder given; it then takes the place of ``path``.

    An older folder at ``path`` is moved aside first and removed last, so that a reader sees the old
    one, for an instant none, or the new one, and never a mixture.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    temporary = _temporary(path)
    aside = temporary.with_name(temporary.name.removesuffix(".tmp") + ".old.tmp")
    try:
        with _said_of(path):
            temporary.mkdir(0o700)
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        _sync_all(temporary)
        if path.is_symlink() or path.exists():
            path.rename(aside)
        temporary.rename(path)
        sync(path.parent)
        remove(aside)
    except BaseException as error:
        if aside.exists() and not path.exists():
            aside.rename(path)
        remove(temporary)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise cannot_write(path, error) from None
        raise


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """Give a folder beside ``path`` for what is needed until ``path`` is written; it is removed at the end.

    Raises:
        UserError: the folder cannot be written to.
    """
    path = Path(path)
    folder = _temporary(path)
    try:
        with _said_of(path):
            folder.mkdir(0o700)
        yield folder
    finally:
        remove(folder)


def _sync_all(folder: Path) -> None:
    """Flush a folder with all it holds; many at once, because a disk writes them out together."""
    entries = [Path(where, name) for where, _, names in os.walk(folder) for name in (*names, ".")]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(sync, entries))


def _umask() -> int:
    """The process's umask; reading it means setting it, so Linux's own view is asked first."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder for the block; the kernel frees it when the process ends, however it ends.

    Where the file system knows no locks, nothing is held.

    Raises:
        UserError: another process holds it, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise cannot_write(folder, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process writes to {folder}: wait until it has ended, or choose another folder"
            ) from None
        except OSError:
            pass
        yield


class GuardedFile:
    """Keeps the first error of writing (a full disk, say), and lets the library believe that all went well.

    HDF5 crashes the process when it closes a file that it could not write, and torch leaves its writer unusable. So
    what cannot be written is kept in memory, where the library finds it again, and :meth:`check` raises the error. Call
    it often: memory grows with what is written after an error.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._flush = EarlyFlush(self._descriptor)
        self._place = 0
        self._error: OSError | None = None
        self._unwritten: list[tuple[int, bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._flush.close()
        os.close(self._descriptor)

    def check(self) -> None:
        """Raise the first error that there was."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """The same, when all is written."""
        self._flush.wait()
        self.check()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            self._place = offset
        else:
            self._place = offset + (self._place if whence == os.SEEK_CUR else self._size())
        return self._place

    def tell(self) -> int:
        return self._place

    def write(self, data: bytes | memoryview) -> int:
        size, done = len(data), 0
        if self._error is None:
            try:
                done = os.pwrite(self._descriptor, data, self._place)
                while done < size:
                    done += os.pwrite(self._descriptor, memoryview(data)[done:], self._place + done)
                self._flush.wrote(size)
            except OSError as error:
                self._error = error
        if self._error is not None:
            self._unwritten.append((self._place, bytes(data)))
        self._place += size
        return size

    def readinto(self, buffer: memoryview) -> int:
        start = self._place
        count = os.preadv(self._descriptor, [buffer], start)
        if self._unwritten:
            filled, count = count, min(len(buffer), max(0, self._size() - start))
            buffer[filled:count] = bytes(max(0, count - filled))
            for at, data in self._unwritten:
                low, high = max(start, at), min(start + count, at + len(data))
                if low < high:
                    buffer[low - start : high - start] = data[low - at : high - at]
        self._place += count
        return count

    def truncate(self, size: int | None = None) -> int:
        wanted = self._place if size is None else size
        try:
            os.ftruncate(self._descriptor, wanted)
        except OSError as error:
            self._error = self._error or error
        return wanted

    def flush(self) -> None:
        """Nothing is held back; the disk is asked when the file is put in place."""

    def _size(self) -> int:
        return max([os.fstat(self._descriptor).st_size, *(at + len(data) for at, data in self._unwritten)])
