"""A record beside what a step has made: of which contents, under which settings, and the proof of each file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from virnucpro.base.digest import FileDigests, FileProof
from virnucpro.base.records import RecordError, read_record, write_record


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


def files_of(paths: Iterable[Path], folder: Path) -> dict[str, FileProof]:
    """The proofs of files, and of all files in folders, by their paths from ``folder``; each is read through."""
    files = [
        file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()
    ]
    return {file.relative_to(folder).as_posix(): FileProof.of(file) for file in files}


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
