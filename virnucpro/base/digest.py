"""Digests that stand for sequences, chunks and files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError


def residue_digest(residues: bytes) -> bytes:
    """16 bytes that stand for a sequence: blake2b of the residues in ASCII.

    Two of 10^9 different sequences share one with a chance of about 10^-21.
    """
    return hashlib.blake2b(residues, digest_size=16).digest()


def digest_of_digests(digests: Iterable[bytes]) -> str:
    """What stands for a chunk: blake2b-16 over its proteins' digests in row order, in hex."""
    total = hashlib.blake2b(digest_size=16)
    for digest in digests:
        total.update(digest)
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


CLOCK_TICK = 2_000_000_000
"""Nanoseconds within which two changes of a file may leave the same times: a few ms as a rule, 2 s on some disks."""


@dataclass(frozen=True)
class FileProof:
    """What a record states of a file, and by which the file proves itself: bytes, and the sha256 of them in hex."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileProof:
        return cls(path.stat().st_size, file_sha256(path))


class FileDigests:
    """The sha256 of files, computed once for as long as a file stays what it is.

    A digest is kept under the file's path, inode, size and its times of modification and of status change. The last
    is set by the kernel at every write, rename or copy and cannot be set back, so a file that was replaced by an
    older-dated one (``cp -p``, ``tar``, ``rsync``) is read again. So is one that was changed a moment before it was
    read, because a second change within a tick of the file system's clock would not show.
    """

    def __init__(self, store: Path | None = None) -> None:
        """Args: ``store`` is the file that keeps the digests between runs; None keeps them for this process alone."""
        self._store = store
        self._known: dict[str, str] = {}
        self._used: dict[str, str] = {}
        if store is not None:
            with suppress(OSError, ValueError):
                known = json.loads(store.read_text(encoding="utf-8"))
                self._known = {key: value for key, value in known.items() if _is_sha256(value)}

    def sha256(self, path: Path) -> str:
        """The digest of a file; a link counts as what it points to.

        Raises:
            OSError: the file cannot be read.
        """
        path = path.resolve()
        key, now = _signature(path), time.time_ns()
        found = self._known.get(key) or self._used.get(key)
        if found is None:
            found = file_sha256(path)
            if _signature(path) != key:  # it was written to meanwhile: the digest stands for neither version
                return found
            if path.stat().st_ctime_ns > now - CLOCK_TICK:
                return found
        self._used[key] = found
        return found

    def save(self) -> None:
        """Keep the digests for later processes; where they cannot be written, the files are read again then."""
        if self._store is None or self._used.items() <= self._known.items():
            return
        with suppress(UserError, OSError), atomic_path(self._store) as beside:
            beside.write_text(json.dumps(self._known | self._used, indent=0), encoding="utf-8")


def _signature(path: Path) -> str:
    stat = path.stat()  # without the device, whose number differs from node to node of a cluster
    return f"{path}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64
