"""Embedding from Python without Snakemake: the workflow's steps one after the other, in one process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from virnucpro.base.digest import FileDigests
from virnucpro.base.lock import alone_in
from virnucpro.base.settings import EmbeddingSettings, InputPolicies, resolve_layers
from virnucpro.chunking.manifest import SplitSettings, chunk_name, read_split
from virnucpro.chunking.size import chunk_size
from virnucpro.config import is_checkpoint_path
from virnucpro.run_state import DIGESTS, wanted_weights
from virnucpro.storage.identity import TableSettings, identity, table_settings
from virnucpro.storage.state import RunState, SampleRequest
from virnucpro.storage.tables import TABLES, check_formats
from virnucpro.weights.manifest import read_manifest

SAMPLE = "sample"
"""The one sample of a call, for messages."""


def embed(
    fasta: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    model: str = "esm2_t36_3B_UR50D",
    layers: Sequence[int | str] | int | str = "last",
    pooling: Sequence[str] = ("mean",),
    precision: str = "auto",
    long_policy: str = "window",
    longest: int = 1022,
    overlap: int = 511,
    empty_records: str = "error",
    duplicate_ids: str = "error",
    empty_samples: str = "error",
    suspicious: str = "refuse",
    formats: Sequence[str] = ("parquet",),
    dtype: str = "float32",
    chunk_residues: int | None = None,
    devices: Sequence[str] | None = None,
    weights_folder: str | Path | None = None,
    logger: logging.Logger | None = None,
) -> Path:
    """Embed proteins and write tables of them; a call that was stopped goes on where it was when it is made again.

    The folder then holds what the workflow writes for a sample: the index ``proteins.parquet``, ``chunks/``,
    ``tensors/``, the tables, and ``embeddings.json`` with provenance and counts. Chunk files that are there are
    verified and kept; those that are damaged or were made from other sequences or settings are recomputed.

    Args:
        fasta: one or several protein FASTA files, plain or packed.
        folder: where results go.
        model: a released model's name, ``esm2_demo`` (random weights, to try things out), or a checkpoint's path.
        layers: ``"last"``, a number (negative ones count from the end), or several.
        pooling: ``"mean"``, ``"per_residue"``, or both.
        precision: ``"auto"``, ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"fp8"``.
        long_policy, longest, overlap: what is done to proteins of more than ``longest`` residues.
        empty_records, duplicate_ids, empty_samples, suspicious: what is done about records that can't simply be
            embedded (see :class:`virnucpro.base.settings.InputPolicies`); ``skipped.tsv`` lists the skipped ones.
        formats: of the tables: ``"parquet"``, ``"hdf5"``, ``"virnucpro_pt"``, ``"npy"``.
        dtype: of the tables, ``"float32"`` or ``"float16"``.
        chunk_residues: residues that are embedded between two savings.
        devices: ``"cuda:0"``, ``"cpu"``, ...; None takes every GPU that the process sees, or the CPU.
        weights_folder: where converted weights are kept; by default ``folder / "weights"``.

    Returns:
        The path of the first format's table; :func:`virnucpro.read_embeddings` reads it.

    Raises:
        UserError: anything that the user can fix; the sentence says how.
    """
    # torch takes seconds to load, so nothing of it is imported with the package.
    from virnucpro.chunking.split import split_proteins
    from virnucpro.engine.job import embed_chunk
    from virnucpro.storage.merge import merge_embeddings
    from virnucpro.storage.verify import why_not_chunk
    from virnucpro.weights.prepare import prepare_weights

    log = logger or logging.getLogger(__name__)
    folder = Path(folder)
    check_formats(formats)
    inputs = tuple([Path(fasta)] if isinstance(fasta, (str, Path)) else [Path(file) for file in fasta])
    settings = EmbeddingSettings(
        layers=(layers,) if isinstance(layers, (int, str)) else tuple(layers),
        pooling=tuple(pooling),
        precision=precision,
        long_policy=long_policy,
        longest=longest,
        overlap=overlap,
    )
    policies = InputPolicies(empty_records, duplicate_ids, empty_samples, suspicious)
    tables = TableSettings(tuple(formats), dtype, 10_000)
    with alone_in(folder):
        digests = FileDigests(folder / DIGESTS)
        checkpoint = Path(model).expanduser() if is_checkpoint_path(model) else None
        weights = wanted_weights(model, checkpoint, Path(weights_folder or folder / "weights"), digests)
        if RunState({}, weights, digests).weights_stale() is not None:
            prepare_weights(model, weights.file, source_sha256=weights.source_sha256, log=log.info)
        manifest = read_manifest(weights.file)
        kept = len(resolve_layers(settings.layers, manifest.layers))
        wanted = "auto" if chunk_residues is None else chunk_residues
        size = chunk_size(wanted, embed_dim=manifest.embed_dim, layers=kept, pooling=settings.pooling)
        split = SplitSettings(*size, manifest.embed_dim, long_policy, longest, overlap, policies)
        request = SampleRequest(folder, inputs, None, split, settings, tables)
        state = RunState({SAMPLE: request}, weights, digests)
        if (reason := state.split_stale(SAMPLE)) is not None:
            log.info("splitting %s (%s)", ", ".join(map(str, inputs)), reason)
            split_proteins(
                inputs,
                request.index,
                request.chunks,
                chunk_residues=size.residues,
                multiple_of=size.multiple_of,
                embed_dim=manifest.embed_dim,
                policy=long_policy,
                longest=longest,
                overlap=overlap,
                policies=policies,
                logger=log,
            )
        record = read_split(request.chunks)
        expected = identity(manifest, settings)
        merged = state.tables_stale(SAMPLE) is None
        chunk_files = []
        for number, digest in enumerate(record.chunks):
            chunk = chunk_name(number)
            source, output = request.chunks / f"{chunk}.fasta", request.chunk_file(chunk)
            chunk_files.append(output)
            reason = state.chunk_stale(SAMPLE, chunk, record)
            if reason is None and not merged:
                reason = why_not_chunk(output, chunk, digest, expected)
            if reason is None:
                log.info("%s is there already", output)
                continue
            log.info("embedding %s (%s)", chunk, reason)
            manifest_file = source.with_suffix(".json")
            embed_chunk(source, manifest_file, weights.file, output, settings, devices=devices, logger=log)
        outputs = {name: folder / TABLES[name].name for name in formats}
        if (reason := state.tables_stale(SAMPLE)) is not None:
            log.info("writing %s (%s)", ", ".join(map(str, outputs.values())), reason)
            merge_embeddings(
                request.index,
                request.chunks,
                chunk_files,
                outputs,
                request.report,
                expected=expected,
                made_from=table_settings(settings, tables),
                dtype=dtype,
                command=f"virnucpro.embed({[str(path) for path in inputs]}, {str(folder)!r}, model={model!r}, ...)",
                logger=log,
            )
        digests.save()
    return outputs[formats[0]]
