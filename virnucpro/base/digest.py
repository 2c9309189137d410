"""Digests that stand for sequences, chunks and files, and the record that a step leaves of what it has made."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.base.limits import usable_cores
from virnucpro.base.records import RecordError, read_record, write_record


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


def file_stamp(path: Path) -> tuple[int, int, int, int]:
    """Inode, size in bytes, and the times of the last write and change in ns: another version has another.

    Raises:
        OSError: there is no such file.
    """
    stat = path.stat()  # without the device, whose number differs from node to node of a cluster
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


CLOCK_TICK = 100_000_000
"""Nanoseconds within which two changes of a file may leave the same times: a kernel's clock ticks every few ms."""

WHOLE_SECONDS = 2_000_000_000
"""The same where a file system keeps whole seconds alone."""


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
                self._known = {
                    key: value for key, value in known.items() if isinstance(value, str) and len(value) == 64
                }

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
            changed = path.stat().st_ctime_ns
            if changed > now - (CLOCK_TICK if changed % 1_000_000_000 else WHOLE_SECONDS):
                return found
        self._used[key] = found
        return found

    def save(self) -> None:
        """Keep the digests for later processes; where they cannot be written, the files are read again then.

        Their folder is not made for them: a dry run makes none.
        """
        if self._store is None or not self._store.parent.is_dir() or self._used.items() <= self._known.items():
            return
        with suppress(UserError, OSError), atomic_path(self._store) as beside:
            beside.write_text(json.dumps(self._known | self._used, indent=0), encoding="utf-8")


def _signature(path: Path) -> str:
    return ":".join(map(str, (path, *file_stamp(path))))


@dataclass(frozen=True)
class Products:
    """What one step has made.

    Attributes:
        made_from: digests of what was read, and settings, by name.
        files: each file, by its path from the record's folder.
    """

    FORMAT: ClassVar[str] = "virnucpro-products-1"

    made_from: dict[str, str]
    files: dict[str, FileProof]


def write_products(record: Path, made_from: Mapping[str, str], paths: Iterable[Path]) -> None:
    """Record files, and all files in folders, that are in place by now.

    Args:
        record: the JSON file to write.
        paths: files and folders in the record's folder or below.
    """
    write_record(record, Products(dict(made_from), files_of(paths, record.parent)))


def files_of(
    paths: Iterable[Path], folder: Path, known: Mapping[Path, FileProof] = MappingProxyType({})
) -> dict[str, FileProof]:
    """The proofs of files, and of all in folders, by their paths from ``folder``; those not ``known`` are read."""
    files = [
        file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()
    ]
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:  # hashing lets other threads of Python run
        proofs = list(pool.map(lambda file: known.get(file) or FileProof.of(file), files))
    return {os.path.relpath(file, folder): proof for file, proof in zip(files, proofs, strict=True)}


def recorded(record: Path, path: Path) -> FileProof:
    """The proof of one file that a step has made, as the step recorded it.

    Args:
        path: the file, in the record's folder or below.

    Raises:
        RecordError: there is no such record, it is damaged, or it does not name the file.
    """
    proof = read_record(record, Products).files.get(path.relative_to(record.parent).as_posix())
    if proof is None:
        raise RecordError(record, f"does not name {path.name}")
    return proof


def read_products(record: Path) -> Products | str:
    """A record of products, or the reason why there is none, as a clause."""
    try:
        return read_record(record, Products)
    except RecordError as error:
        return f"{record.name} {error.reason}"


def why_stale(products: Products, folder: Path, wanted: Mapping[str, str], digests: FileDigests) -> str | None:
    """Why products are not what is wanted, as a clause; None when they are.

    Args:
        folder: from where the files' paths count.
        wanted: what ``made_from`` has to say; further entries of it are not compared.
    """
    for name, value in wanted.items():
        if products.made_from.get(name) != value:
            return f"made from another {name.replace('_', ' ')}"
    for name, proof in products.files.items():
        reason = why_not(folder / name, proof, digests)
        if reason is not None:
            return f"{name} {reason}"
    return None


def why_not(path: Path, proof: FileProof, digests: FileDigests) -> str | None:
    """Why a file is not the one that was recorded; None when it is, byte for byte."""
    try:
        if path.stat().st_size == proof.size and digests.sha256(path) == proof.sha256:
            return None
    except OSError:
        return "is missing" if not path.exists() else "cannot be read"
    return "was changed or damaged"
