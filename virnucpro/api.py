"""Embedding from Python without Snakemake: FASTA files to tables in a folder, or sequences in memory to a matrix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import alone_in
from virnucpro.base.digest import FileDigests
from virnucpro.base.errors import UserError
from virnucpro.base.limits import check_space, let_waiting_threads_sleep, usable_cores
from virnucpro.base.paths import user_cache, user_path
from virnucpro.base.records import read_record
from virnucpro.base.settings import EmbeddingSettings, InputPolicies, LongProteins, TableSettings, checked, default
from virnucpro.base.text import short
from virnucpro.chunking.manifest import CHUNK_FILES, ONE_SAMPLE, ChunkManifest, SplitRecord
from virnucpro.chunking.size import SPECIAL_TOKENS, chunk_sizes
from virnucpro.models.reference import ModelRef, resolve_layers
from virnucpro.options import in_arguments, speaking
from virnucpro.sequences.fasta import clean_residues
from virnucpro.storage.chunk_metadata import identity
from virnucpro.storage.sample_files import REUSE_INDEX, PoolRequest, SampleRequest, sources_text
from virnucpro.storage.sizes import Kept
from virnucpro.storage.state import DIGESTS, RunState, table_settings
from virnucpro.storage.tables import TABLES, check_formats
from virnucpro.weights.manifest import WeightsRequest, read_manifest, read_weights

if TYPE_CHECKING:
    from virnucpro.storage.reuse import Reuse


@speaking(in_arguments)
def embed(
    fasta: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    model: str | Path | ModelRef = default("model"),
    adapter: str | Path = default("adapter"),
    layers: Sequence[int | str] | int | str = default("layers"),
    pooling: Sequence[str] | str = default("pooling"),
    precision: str = default("precision"),
    long_proteins: LongProteins | Mapping[str, int | str] | str = LongProteins(),
    empty_records: str = default("empty_records"),
    duplicate_ids: str = default("duplicate_ids"),
    empty_samples: str = default("empty_samples"),
    suspicious: str = default("suspicious"),
    formats: Sequence[str] | str = default("merge.formats"),
    dtype: str = default("merge.dtype"),
    records_per_file: int = default("merge.records_per_file"),
    chunk_residues: int | str = default("chunk_residues"),
    reuse: Sequence[str | Path] | str | Path = default("reuse"),
    reuse_devices: str = default("reuse_devices"),
    devices: Sequence[str] | None = None,
    threads: int | None = None,
    weights_folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    logger: logging.Logger | None = None,
) -> Path:
    """Embed proteins and write tables of them; a call that was stopped continues where it was when it is repeated.

    The folder then holds what the workflow writes for a sample: the index ``proteins.parquet``, ``chunks/``,
    ``tensors/``, the tables, and ``embeddings.json`` with provenance and counts. Chunk files that are there are
    verified and kept; those that are damaged or were made from other sequences or settings are recomputed.

    Args:
        fasta: one or several protein FASTA files, plain or packed.
        folder: where results go.
        model, adapter, layers, pooling, precision, formats, dtype, records_per_file, chunk_residues, reuse,
            reuse_devices: as in config.yaml;
            ``virnucpro.base.settings.SETTINGS`` says what each may be. One alone stands for a list of one.
        long_proteins: what is done to proteins of more than ``longest`` residues; a mapping of its fields, or the
            policy alone, will do.
        empty_records, duplicate_ids, empty_samples, suspicious: what is done about records that can't simply be
            embedded; ``skipped.tsv`` lists the skipped ones.
        devices: ``"cuda:0"``, ``"cpu"``, ...; None takes every GPU that the process sees, or the CPU.
        threads: of the CPU; None takes as many as torch does, and never more than there are cores.
        weights_folder: where converted weights are kept; by default ``weights`` in the user's cache, once for all calls
            (:func:`virnucpro.base.paths.user_cache`).
        progress: is told, as batches are done, how many tokens are and how many this call embeds.

    Returns:
        The path of the first format's table; :func:`virnucpro.read_embeddings` reads it.

    Raises:
        UserError: anything that the user can fix; the sentence says how.
    """
    let_waiting_threads_sleep()
    # torch takes seconds to load, so nothing of it is imported with the package.
    from virnucpro.chunking.split import ToSplit, split_samples
    from virnucpro.cuda.devices import job_devices
    from virnucpro.engine.job import embed_chunk
    from virnucpro.storage.chunk_file import why_not_chunk
    from virnucpro.storage.merge import merge_embeddings
    from virnucpro.storage.pool import Finder

    log = logger or logging.getLogger(__name__)
    folder = user_path(folder, "folder")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise UserError(f"threads can't be {short(threads)}: it must be a whole number of 1 or more")
    settings = EmbeddingSettings(
        checked("layers", layers),
        checked("pooling", pooling),
        precision,
        LongProteins.of(long_proteins),
        residue_dtype=dtype,
    )
    policies = InputPolicies(empty_records, duplicate_ids, empty_samples, suspicious)
    tables = TableSettings(checked("merge.formats", formats), dtype, records_per_file)
    check_formats(tables.formats)
    wanted = checked("chunk_residues", chunk_residues)
    model = ModelRef.of(model, adapter)
    tables.check(model.resolve(settings.layers), settings.pooling)
    earlier = _earlier([reuse] if isinstance(reuse, (str, Path)) else reuse, reuse_devices, folder, devices)
    inputs = _files([fasta] if isinstance(fasta, (str, Path)) else fasta)
    with alone_in(folder):
        digests = FileDigests(folder / DIGESTS)
        weights = _prepared(model, weights_folder, digests, log)
        manifest = read_manifest(weights.file)
        kept = Kept(manifest.embed_dim, len(resolve_layers(settings.layers, manifest.layers)), settings, tables)
        sizes = chunk_sizes(
            wanted,
            parameters=manifest.parameters,
            embed_dim=manifest.embed_dim,
            layers=kept.layers,
            pooling=settings.pooling,
        )
        kind = "cpu" if job_devices(devices)[0] == "cpu" else "gpu"
        request = SampleRequest(folder, inputs, None, tables)
        sources = sources_text(earlier.sources, reuse_devices) if earlier else ""
        pool = PoolRequest.of(folder, kept.embed_dim, sizes, kind, settings, policies, sources)
        state = RunState({ONE_SAMPLE: request}, weights, digests, pool)
        state.check_sources()
        if (reason := state.split_stale()) is not None:
            log.info("splitting %s (%s)", ", ".join(map(str, inputs)), reason)
            sample = ToSplit(inputs, request.index, request.skipped)
            find = Finder(pool.tensors, settings, weights, reuse=earlier, logger=log)
            split_samples({ONE_SAMPLE: sample}, pool.chunks, pool.split_settings, find=find, logger=log)
        record = state.split()
        expected = identity(manifest, settings)
        merged = state.tables_stale(ONE_SAMPLE) is None
        if not merged:
            _check_space(state, record, kept)
        left = {}
        for chunk in record.to_embed():
            output = pool.chunk_file(chunk)
            reason = state.chunk_stale(chunk)
            if reason is None and not merged:
                reason = why_not_chunk(output, chunk, record.chunks[chunk].digest, expected)
            if reason is None:
                log.info("%s is there already", output)
            else:
                left[chunk] = reason
        chunks = [read_record(pool.chunks / f"{chunk}.json", ChunkManifest) for chunk in left]
        told = _Told(progress, [chunk.residues + SPECIAL_TOKENS * chunk.proteins for chunk in chunks])
        if left:
            told.batch(0)
        for chunk, reason in left.items():
            log.info("embedding %s (%s)", chunk, reason)
            source, output = pool.chunks / f"{chunk}.fasta", pool.chunk_file(chunk)
            chosen: dict[str, Any] = {"devices": devices, "threads": threads, "heard": told.batch}
            embed_chunk(source, weights.file, output, settings, **chosen, logger=log)
            told.chunk()
        outputs = {name: folder / TABLES[name].name for name in tables.formats}
        if (reason := state.tables_stale(ONE_SAMPLE)) is not None:
            log.info("writing %s (%s)", ", ".join(map(str, outputs.values())), reason)
            merge_embeddings(
                request.index,
                pool.chunks,
                pool.tensors,
                outputs,
                request.report,
                expected=expected,
                made_from=table_settings(settings, tables),
                dtype=tables.dtype,
                records_per_file=tables.records_per_file,
                command=f"virnucpro.embed({list(map(str, inputs))}, {str(folder)!r}, model={str(model)!r}, ...)",
                logger=log,
            )
        digests.save()
    return outputs[tables.formats[0]]


class _Told:
    """Adds up tokens over chunks; residues in two windows have two, so that a chunk's count is right at its end."""

    def __init__(self, progress: Callable[[int, int], None] | None, tokens: Iterable[int]) -> None:
        self._progress = progress
        self._ends = list(accumulate(tokens))
        self._done = self._chunks = 0

    def batch(self, tokens: int) -> None:
        self._tell(min(self._done + tokens, self._ends[self._chunks]))

    def chunk(self) -> None:
        self._tell(self._ends[self._chunks])
        self._chunks += 1

    def _tell(self, done: int) -> None:
        self._done = done
        if self._progress is not None:
            self._progress(done, self._ends[-1])


def _prepared(model: ModelRef, folder: str | Path | None, digests: FileDigests, log: logging.Logger) -> WeightsRequest:
    """The model's weights, prepared by now; by default in the user's cache, once for all calls."""
    from virnucpro.weights.prepare import prepare_weights

    weights = WeightsRequest.of(model, user_path(folder or user_cache() / "weights", "weights_folder"), digests)
    if weights.prepared() is None:
        prepare_weights(model, weights.file, digests=weights.digests, log=log.info)
    return weights


def _earlier(given: Sequence[str | Path], which: str, folder: Path, devices: Sequence[str] | None) -> Reuse | None:
    """The earlier results to use, if any."""
    if not given:
        return None
    from virnucpro.cuda.devices import device_name, job_devices, parse_device
    from virnucpro.storage.reuse import Reuse

    names = tuple(device_name(parse_device(device)) for device in job_devices(devices))
    is_any = checked("reuse_devices", which) == "any"
    sources = tuple(user_path(path, "reuse") for path in given)
    return Reuse(sources, folder / REUSE_INDEX, names, is_any)


def _check_space(state: RunState, record: SplitRecord, kept: Kept) -> None:
    """Refuse, before anything is embedded, what the disk can't hold."""
    if not kept.is_exact:
        return  # how many residues stay is known chunk by chunk
    folder, counts = state.samples[ONE_SAMPLE].folder, record.samples[ONE_SAMPLE].counts
    needed = kept.chunk_bytes(counts["unique"], counts["unique_residues"])
    needed -= sum(path.stat().st_size for path in state.pool.tensors.glob(CHUNK_FILES))
    needed = max(0, needed) + kept.table_bytes(counts["records"], counts["residues"])
    check_space(folder, needed, f"embedding {counts['records']:,} records")


def _files(given: Sequence[str | Path]) -> tuple[Path, ...]:
    """The FASTA files, each of them there: known before a model is downloaded for them."""
    files = tuple(user_path(file, "fasta") for file in given)
    if not files:
        raise UserError("no FASTA file was given: name at least one")
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: there is no such file")
        if file.is_dir():
            raise UserError(f"{file} is a folder: name the FASTA files in it")
    return files


class Embedded(NamedTuple):
    """``ids`` in the order in which they came, and a vector for each: float32 ``(n, D)``."""

    ids: list[str]
    matrix: NDArray[np.float32]


@speaking(in_arguments)
def embed_sequences(
    sequences: Mapping[str, str] | Iterable[tuple[str, str]],
    *,
    model: str | Path | ModelRef = default("model"),
    adapter: str | Path = default("adapter"),
    layer: int | str = "last",
    precision: str = default("precision"),
    long_proteins: LongProteins | Mapping[str, int | str] | str = LongProteins(),
    device: str | None = None,
    threads: int | None = None,
    weights_folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    logger: logging.Logger | None = None,
) -> Embedded:
    """Embed proteins that are in memory: the mean of a layer over each one's residues.

    For many proteins, residues or several GPUs there is :func:`virnucpro.embed`, which goes on where it was stopped;
    the numbers are the same. Equal sequences are embedded once.

    Args:
        sequences: residues by id, or pairs of both; ids may be any text, also the same one twice in pairs.
        model, adapter, precision, long_proteins: as for :func:`virnucpro.embed`.
        layer: its number, or ``"last"``.
        device: ``"cuda:0"``, ``"cpu"``, ...; None takes the first GPU, or the CPU.
        threads, weights_folder, progress: as for :func:`virnucpro.embed`.

    Raises:
        UserError: a sequence that is empty or holds what is no residue, or what :func:`virnucpro.embed` refuses.

    >>> embed_sequences({"a": "MKVLAAGIV", "b": "MKV"}, model="esm2_demo", device="cpu").matrix.shape
    (2, 64)
    """
    let_waiting_threads_sleep()
    import torch

    from virnucpro.cuda.devices import job_devices
    from virnucpro.engine.embed import Protein, embed_proteins

    log = logger or logging.getLogger(__name__)
    settings = EmbeddingSettings((layer,), ("mean",), precision, LongProteins.of(long_proteins))
    pairs = [*(sequences.items() if isinstance(sequences, Mapping) else sequences)]
    ids = [name for name, _ in pairs]
    residues = [_residues(name, text) for name, text in pairs]
    ref = ModelRef.of(model, adapter)
    ref.resolve(settings.layers)
    weights = _prepared(ref, weights_folder, FileDigests(), log)
    prepared = read_weights(weights.file)
    if not pairs:
        return Embedded([], np.zeros((0, prepared.manifest.embed_dim), np.float32))
    rows = {text: row for row, text in enumerate(dict.fromkeys(residues))}
    names = dict(zip(reversed(residues), reversed(ids), strict=True))
    proteins = [Protein(names[text], text) for text in rows]
    told = _Told(progress, [sum(len(text) + SPECIAL_TOKENS for text in rows)])
    if threads is not None:
        torch.set_num_threads(min(threads, usable_cores()))
    name = device or job_devices(None)[0]
    found = embed_proteins(proteins, prepared, settings, device=name, heard=told.batch, logger=log)
    (means,) = (values for key, values in found.tensors.items() if key.startswith("mean."))
    return Embedded(ids, means[[rows[text] for text in residues]])


def _residues(name: str, text: str) -> bytes:
    """One sequence's residues.

    Raises:
        UserError: there are none, or something else is among them.
    """
    if not isinstance(name, str) or not isinstance(text, str):
        raise UserError(f"sequences must be texts by their ids, and {short(name)} is {short(text)}")
    cleaned = clean_residues(text.encode())
    if cleaned is None:
        raise UserError(f"the sequence of {short(name)} holds what is no residue: {short(text)}")
    if not cleaned[0].strip(b"-."):
        raise UserError(f"the sequence of {short(name)} is empty: give it one, or leave it out")
    return cleaned[0]
