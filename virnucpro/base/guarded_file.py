"""A file for libraries in C that crash when a write fails."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self


class GuardedFile:
    """Keeps the first error of writing (a full disk, say), and lets the library believe that all went well.

    HDF5 crashes the process when it closes a file that it could not write, and torch leaves its writer unusable. So
    what cannot be written is kept in memory, where the library finds it again, and :meth:`check` raises the error. Call
    it often: memory grows with what is written after an error.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._place = 0
        self._error: OSError | None = None
        self._unwritten: list[tuple[int, bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)

    def check(self) -> None:
        """Raise the first error that there was."""
        if self._error is not None:
            raise self._error

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
