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
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
    proofs = {str(file.relative_to(record.parent)): FileProof.of(file) for file in files}
    write_record(record, Products(dict(made_from), proofs))


def why_stale(record: Path, wanted: Mapping[str, str | None], digests: FileDigests) -> str | None:
    """Why what a record vouches for is not what is wanted, as a clause; None when it is.

    Args:
        wanted: what ``made_from`` has to say; None where that cannot be known yet.
    """
    try:
        products = read_record(record, Products)
    except RecordError as error:
        return f"{record.name} {error.reason}"
    changed = [
        name
        for name in sorted({*wanted, *products.made_from})
        if wanted.get(name, "") is not None and products.made_from.get(name) != wanted.get(name)
    ]
    if changed:
        return f"made with another {changed[0].replace('_', ' ')}"
    for name, proof in products.files.items():
        reason = why_not(record.parent / name, proof, digests)
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
