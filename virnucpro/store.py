"""``virnucpro store``: what results hold of embedded sequences, whether it is whole, and what nothing needs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from virnucpro.base.atomic import alone_in, remove
from virnucpro.base.errors import UserError
from virnucpro.base.records import RecordError
from virnucpro.base.text import number, size
from virnucpro.chunking.manifest import CHUNK_FILES, read_split
from virnucpro.options import path
from virnucpro.storage.sample_files import PoolFiles


def add_store(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    store = commands.add_parser("store", help="list, verify and prune the chunk files of results")
    store.add_argument("folder", type=path, metavar="FOLDER", help="a folder of results")
    store.add_argument("--verify", action="store_true", help="compare every byte of every chunk file with its checksum")
    store.add_argument("--prune", action="store_true", help="remove chunk files that no sample of the last run needs")
    store.set_defaults(run=_store)


def _store(given: argparse.Namespace) -> None:
    with ExitStack() as stack:
        if given.prune:
            stack.enter_context(alone_in(given.folder))
        pools = [pool for pool in _pools(given.folder) if pool.tensors.is_dir()]
        if not pools:
            raise UserError(f"{given.folder} has no folder of chunk files (tensors): name a folder of results")
        wrong = 0
        for pool in pools:
            _list(pool)
            wrong += _verify(pool) if given.verify else 0
            if given.prune:
                _prune(pool)
    if wrong:
        raise UserError(f"{number(wrong, 'chunk file')} can't be trusted: delete them and run the workflow again")


def _pools(folder: Path) -> Iterator[PoolFiles]:
    from virnucpro.calling.state import NUCLEOTIDES

    yield PoolFiles(folder)
    yield PoolFiles(folder / NUCLEOTIDES)


def _chunk_files(pool: PoolFiles) -> list[Path]:
    return sorted(pool.tensors.glob(CHUNK_FILES))


def _needed(pool: PoolFiles) -> set[str] | None:
    """The chunks that the last split's samples need; None where there is no split."""
    try:
        return set(read_split(pool.chunks).chunks)
    except RecordError:
        return None


def _spare(pool: PoolFiles, needed: set[str]) -> list[Path]:
    """The chunk files that are none of those."""
    return [file for file in _chunk_files(pool) if file.stem not in needed]


def _list(pool: PoolFiles) -> None:
    """Print how many sequences there are, by what they were embedded with."""
    from virnucpro.storage.chunk_file import ChunkError, ChunkFile, read_chunk_file

    groups: dict[tuple[str, ...], list[ChunkFile]] = {}
    for file in _chunk_files(pool):
        try:
            chunk = read_chunk_file(file)
        except ChunkError as error:
            print(f"{file}: {error.reason}")
            continue
        names = ("model", "weights_sha256", "layers", "pooling", "precision", "device")
        groups.setdefault(tuple(chunk.metadata.get(name, "?") for name in names), []).append(chunk)
    for (model, sha256, layers, pooling, precision, device), chunks in groups.items():
        proteins = sum(chunk.proteins for chunk in chunks)
        reused = sum(chunk.proteins for chunk in chunks if chunk.metadata.get("reused_from"))
        taken = f" ({reused:,} from earlier results)" if reused else ""
        print(
            f"{pool.tensors}: {number(proteins, 'sequence')}{taken} in {number(len(chunks), 'chunk file')}, "
            f"{size(sum(chunk.path.stat().st_size for chunk in chunks))}: {model} ({sha256[:12]}), layers {layers}, "
            f"{pooling}, precision {precision}, {device}"
        )
    needed = _needed(pool)
    if needed is not None:
        spare = _spare(pool, needed)
        if spare:
            amount = size(sum(file.stat().st_size for file in spare))
            print(f"{pool.tensors}: {number(len(spare), 'chunk file')} of these, {amount}, needed by no sample")


def _verify(pool: PoolFiles) -> int:
    """Print which chunk files are not whole; how many there are."""
    from virnucpro.storage.chunk_file import ChunkError, verify_chunk_file

    wrong = 0
    for file in _chunk_files(pool):
        try:
            verify_chunk_file(file)
        except ChunkError as error:
            wrong += 1
            print(f"{file}: {error.reason}")
    print(f"{pool.tensors}: {number(len(_chunk_files(pool)) - wrong, 'chunk file')} verified")
    return wrong


def _prune(pool: PoolFiles) -> None:
    """Remove what no sample of the last split needs, and files that a merge has put aside as bad."""
    needed = _needed(pool)
    if needed is None:
        raise UserError(f"{pool.split} is not there, so nobody knows what is needed: run the workflow first")
    spare = _spare(pool, needed)
    spare += sorted(pool.tensors.glob(f"{CHUNK_FILES}.bad"))
    amount = size(sum(file.stat().st_size for file in spare))
    for file in spare:
        remove(file)
    print(f"{pool.tensors}: {number(len(spare), 'file')} removed, {amount}")
