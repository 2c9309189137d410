"""Is a set of chunk files whole, ours, and of the sequences that the split names?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from virnucpro.base.digest import digest_of_digests
from virnucpro.base.errors import UserError
from virnucpro.chunking.manifest import SplitRecord, chunk_name
from virnucpro.storage.chunk_file import ChunkError, ChunkFile, decoded, verify_chunk_file

PROVENANCE = ("model", "weights_sha256", "layers", "pooling", "precision", "long_proteins")
"""Metadata entries that must be equal in all chunk files of one table."""

NAMED = 10
"""Files named one by one in an error; the rest are counted."""


def verify_chunks(
    split: SplitRecord, tensors: Sequence[Path], expected: Mapping[str, str], *, threads: int = 1
) -> list[ChunkFile]:
    """Check every chunk file that a split needs, all of them before any is used.

    A file that is damaged, made of other sequences, or made with another model or other settings than
    ``expected`` (and than the rest) is renamed to ``NAME.bad``, so that the next call recomputes it.

    Args:
        tensors: the chunk files, known by their names (``chunk_00000.safetensors``).
        expected: metadata entries that all files must have; JSON values are compared as values.
        threads: files hashed at the same time.

    Returns:
        the chunk files in the order of their numbers.

    Raises:
        UserError: files are missing or bad; all are in the one sentence.
    """
    by_name = {Path(path).stem: Path(path) for path in tensors}
    names = [chunk_name(number) for number in range(len(split.chunks))]
    missing = [by_name.get(name, Path(f"{name}.safetensors")) for name in names if not _is_there(by_name.get(name))]
    present = [(number, by_name[name]) for number, name in enumerate(names) if _is_there(by_name.get(name))]

    def check(item: tuple[int, Path]) -> ChunkFile | ChunkError:
        try:
            return verify_chunk(item[1], chunk_name(item[0]), split.chunks[item[0]], expected)
        except ChunkError as error:
            return error

    with ThreadPoolExecutor(max(1, threads)) as pool:
        results = list(pool.map(check, present))
    whole = [result for result in results if isinstance(result, ChunkFile)]
    bad = {result.path: result.reason for result in results if isinstance(result, ChunkError)}
    bad |= _odd_ones_out(whole)
    if bad:
        for path in bad:
            path.replace(path.with_name(path.name + ".bad"))
        raise UserError(_sentence(bad, missing))
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} chunk files are missing ({_listed(map(str, missing), len(missing))}); "
            "run the same command again to compute them"
        )
    return whole


def _is_there(path: Path | None) -> bool:
    return path is not None and path.exists()


def verify_chunk(path: Path, name: str, digest: str, expected: Mapping[str, str]) -> ChunkFile:
    """Check one chunk file: every byte, that it is chunk ``name`` of these sequences, and made as ``expected``.

    Raises:
        ChunkError: the file cannot be trusted or is another; its ``reason`` says why.
    """
    chunk = verify_chunk_file(path)
    for key, value in {"chunk": name, **expected}.items():
        if not _same(chunk.metadata.get(key), value):
            raise ChunkError(path, f"it was made with {key} {chunk.metadata.get(key)}, not {value}")
    rows = digest_of_digests([chunk.read("digests").tobytes()])
    if digest != rows or chunk.metadata.get("chunk_digest") != rows:
        raise ChunkError(path, "it was made of other sequences than this sample's, so it is stale or foreign")
    return chunk


def why_not_chunk(path: Path, name: str, digest: str, expected: Mapping[str, str]) -> str | None:
    """Why a chunk file is not the one that is wanted (see :func:`verify_chunk`); None when it is, byte for byte."""
    try:
        verify_chunk(path, name, digest, expected)
    except ChunkError as error:
        return error.reason
    return None


def _same(found: str | None, wanted: str) -> bool:
    return found is not None and (found == wanted or decoded(found) == decoded(wanted))


def _odd_ones_out(chunks: Sequence[ChunkFile]) -> dict[Path, str]:
    """Files made otherwise than most, where what is expected does not settle it."""
    bad: dict[Path, str] = {}
    for key in PROVENANCE:
        values = Counter(chunk.metadata.get(key) for chunk in chunks)
        if len(values) < 2:
            continue
        usual = values.most_common(1)[0][0]
        for chunk in chunks:
            found = chunk.metadata.get(key)
            if found != usual and not (found is not None and usual is not None and _same(found, usual)):
                bad[chunk.path] = f"it was made with {key} {found}, the others with {usual}"
    return bad


def _listed(names: Any, count: int) -> str:
    shown = [name for name, _ in zip(names, range(NAMED), strict=False)]
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _sentence(bad: Mapping[Path, str], missing: Sequence[Path]) -> str:
    one = len(bad) == 1
    listed = _listed((f"{path}: {reason}" for path, reason in bad.items()), len(bad))
    also = f"; {len(missing)} more are missing ({_listed(map(str, missing), len(missing))})" if missing else ""
    return (
        f"{len(bad)} chunk file{' is' if one else 's are'} bad ({listed}){also}; renamed to NAME.bad, so "
        f"run the same command again to recompute {'it' if one else 'them'}"
    )
