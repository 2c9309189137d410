"""Bytes written into a file by several threads, and the sha256 of each block of it, taken while the bytes are at hand.

Hashing and writing let other threads of Python run, so a few threads keep up with a GPU whose results are written.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import EarlyFlush
from virnucpro.base.limits import usable_cores
from virnucpro.storage.chunk_layout import BLOCK

QUEUED = 2
"""Arrays (of each layer) that may wait to be written; then who brings more waits."""


def writing_threads() -> int:
    """As many as hash and write faster than a GPU computes, where there are so many cores."""
    return min(8, usable_cores())


def block_digest(descriptor: int, start: int, size: int) -> bytes:
    """The sha256 of a part of a file.

    Raises:
        OSError: it cannot be read.
        EOFError: the file ends before.
    """
    buffer = memoryview(bytearray(size))
    done = 0
    while done < size:
        count = os.preadv(descriptor, [buffer[done:]], start + done)
        if not count:
            raise EOFError
        done += count
    return hashlib.sha256(buffer).digest()


def block_digests(descriptor: int, start: int, size: int, pool: ThreadPoolExecutor) -> list[bytes]:
    """The sha256 of each :data:`BLOCK` bytes of ``size`` bytes from ``start`` of a file.

    Raises:
        OSError: it cannot be read.
        EOFError: the file ends before.
    """
    places = range(0, size, BLOCK)
    return list(pool.map(lambda place: block_digest(descriptor, start + place, min(BLOCK, size - place)), places))


class BlockWriter:
    """Writes arrays to places of a file; a context manager. Places count from the start of the data.

    No byte is to be written twice. Errors of writing are raised by a later call.
    """

    def __init__(self, path: Path, data_start: int, data_size: int) -> None:
        """Args: ``path`` is a file that exists; its data begin at byte ``data_start`` and are ``data_size`` bytes."""
        self._start, self._size = data_start, data_size
        self._pool = ThreadPoolExecutor(writing_threads(), "write")
        self._descriptor = os.open(path, os.O_RDWR)
        self._flush = EarlyFlush(self._descriptor)
        self._parts: dict[int, list[Future[Any]]] = {}
        self._left: dict[int, int] = {}
        self._waiting: deque[list[tuple[int, Future[bytes | None]]]] = deque()
        self._digests: dict[int, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._flush.close()
        os.close(self._descriptor)

    def write(self, arrays: Sequence[tuple[int, NDArray[Any]]]) -> None:
        """Have C-contiguous arrays written, each from its place on; they must stay as they are until they are.

        Waits while more than :data:`QUEUED` earlier calls have something left to write.

        Raises:
            OSError: what an earlier call brought could not be written.
        """
        begun = []
        for place, array in arrays:
            data = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
            while len(data):
                block, within = divmod(place, BLOCK)
                piece = data[: BLOCK - within]
                begun.append((block, self._begin(block, place, piece)))
                place, data = place + len(piece), data[len(piece) :]
        self._waiting.append(begun)
        while len(self._waiting) > QUEUED:
            self._collect()

    def _begin(self, block: int, place: int, piece: memoryview) -> Future[bytes | None]:
        size = min(BLOCK, self._size - block * BLOCK)
        self._left[block] = self._left.get(block, size) - len(piece)
        earlier = self._parts.setdefault(block, [])
        future: Future[bytes | None]
        if len(piece) == size:
            future = self._pool.submit(self._write_whole, place, piece)
        elif self._left[block]:
            future = self._pool.submit(self._write_part, place, piece)
        else:
            future = self._pool.submit(self._write_last, block, place, piece, list(earlier))
        earlier.append(future)
        if not self._left[block]:
            del self._parts[block]
        return future

    def _write_part(self, place: int, piece: memoryview) -> None:
        done = 0
        while done < len(piece):
            done += os.pwrite(self._descriptor, piece[done:], self._start + place + done)

    def _write_whole(self, place: int, piece: memoryview) -> bytes:
        self._write_part(place, piece)
        return hashlib.sha256(piece).digest()

    def _write_last(self, block: int, place: int, piece: memoryview, earlier: Sequence[Future[Any]]) -> bytes:
        """The part that completes a block, which is then read again as a whole.

        Waiting in a thread of the pool is safe here: what is waited for was begun before.
        """
        self._write_part(place, piece)
        for future in earlier:
            future.result()
        return self._digest(block)

    def _digest(self, block: int) -> bytes:
        return block_digest(self._descriptor, self._start + block * BLOCK, min(BLOCK, self._size - block * BLOCK))

    def _collect(self) -> None:
        done = 0
        for block, future in self._waiting.popleft():
            digest = future.result()
            if digest is not None:
                self._digests[block] = digest
                done += BLOCK
        self._flush.wrote(done)

    def finish(self) -> dict[int, bytes]:
        """Wait until all is written.

        Returns:
            The digests of the blocks of which every byte came from here, by their numbers.

        Raises:
            OSError: something could not be written.
        """
        while self._waiting:
            self._collect()
        self._flush.wait()
        return dict(self._digests)

    def digests(self, known: dict[int, bytes]) -> list[bytes]:
        """The digests of all blocks, when all is written: the ``known`` ones, and those of what is read again.

        Raises:
            OSError: something could not be written or read.
        """
        known = known | self.finish()
        numbers = range(-(-self._size // BLOCK))
        missing = [number for number in numbers if number not in known]
        known |= dict(zip(missing, self._pool.map(self._digest, missing), strict=True))
        return [known[number] for number in numbers]

    def write_head(self, head: bytes) -> None:
        """Write what stands before the data, from the start of the file."""
        self._write_part(-self._start, memoryview(head))
