"""A file that is hashed as it is written, so that its checksum is known when its last byte is."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

from virnucpro.base.atomic import EarlyFlush
from virnucpro.base.digest import FileProof

WAITING = 1 << 26
"""Bytes that may wait to be hashed; then who writes more waits."""

SMALL = 1 << 16
"""Bytes that are hashed sooner than a thread is started: a run can have a thousand small samples."""


class HashedFile:
    """A new file that only grows; a context manager. One thread takes its sha256, another brings it to the disk.

    Hashing lets other threads of Python run, so a file is hashed while it is written, and several at the same time.
    ``size`` are the bytes so far.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self.size, self._sha256 = 0, sha256()
        self._flush = EarlyFlush(self._descriptor)
        self._hasher = ThreadPoolExecutor(1, "sha256")
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hasher.shutdown(cancel_futures=True)
        self._flush.close()
        os.close(self._descriptor)

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes, which must never change afterwards: they may be hashed later.

        Raises:
            OSError: they could not be written, or what came before could not be brought to the disk.
        """
        size = len(data)
        while self._waiting and (self._held > WAITING or self._waiting[0][1].done()):
            self._collect()
        if size < SMALL and not self._waiting:
            self._sha256.update(data)
        else:
            self._waiting.append((size, self._hasher.submit(self._sha256.update, data)))
            self._held += size
        done = 0
        while done < size:
            done += os.write(self._descriptor, memoryview(data)[done:])
        self.size += size
        self._flush.wrote(size)
        return size

    def _collect(self) -> None:
        size, future = self._waiting.popleft()
        future.result()
        self._held -= size

    def finish(self) -> FileProof:
        """Wait until all is hashed.

        Raises:
            OSError: something could not be brought to the disk.
        """
        self._flush.wait()
        while self._waiting:
            self._collect()
        return FileProof(self.size, self._sha256.hexdigest())
