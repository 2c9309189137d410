"""One embed job: a chunk's FASTA in, a chunk file out, on every device that the job has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.base.digest import digest_of_digests, residue_digest
from virnucpro.base.errors import UserError
from virnucpro.base.limits import check_space, usable_cores
from virnucpro.base.records import read_record
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.base.text import number
from virnucpro.chunking.cost import embedded_residues, protein_costs
from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.cuda.devices import job_devices
from virnucpro.engine.devices import TASK_FILE, ShareTask, balanced_shares, embed_on_devices, write_part
from virnucpro.engine.embed import Protein, embed_proteins
from virnucpro.engine.load import load_tokenizer
from virnucpro.engine.processes import DeviceProcess
from virnucpro.sequences.fasta import read_fasta
from virnucpro.storage.blocks import BlockWriter
from virnucpro.storage.chunk_layout import chunk_shapes
from virnucpro.storage.chunk_metadata import (
    ChunkMetadata,
    ChunkSource,
    RunStatistics,
    embedding_identity,
    header_entries,
)
from virnucpro.storage.chunk_writer import ResidueRegion, ResidueStream, open_chunk_file
from virnucpro.weights.manifest import WeightsManifest, read_weights


def embed_chunk(
    fasta: Path,
    weights: Path,
    output: Path,
    settings: EmbeddingSettings,
    *,
    devices: Sequence[str] | None = None,
    require_gpu: bool = False,
    threads: int | None = None,
    processes: Sequence[DeviceProcess] = (),
    heard: Callable[[int], None] | None = None,
    logger: logging.Logger,
) -> RunStatistics:
    """Embed one chunk and write its chunk file (see :mod:`virnucpro.storage.chunk_layout`).

    Args:
        fasta: the chunk's, beside which its manifest is.
        devices: "cpu", "cuda:0", ...; one process each when there are several. None takes every
            CUDA device that the process sees, and the CPU where there is none.
        require_gpu: refuse to embed on a CPU that nobody named.
        threads: of the CPU, shared among the devices; None leaves torch's own number.
        processes: of several devices, where they were started early; what is missing is started.
        heard: is told the tokens of each batch that is done, where one device does them all.

    Returns:
        The statistics that are also in the chunk file's metadata.

    Raises:
        UserError: the FASTA is not the one that the manifest describes, or see :func:`embed_proteins`.
    """
    names = job_devices(devices, require_gpu=require_gpu)
    with ExitStack() as running:
        if len(names) > 1:
            more = (running.enter_context(DeviceProcess(name)) for name in names[len(processes) :])
            processes = [*processes[: len(names)], *more]
        prepared = read_weights(weights)
        manifest = prepared.manifest
        identity = embedding_identity(manifest, settings)
        chunk, proteins, digests = read_chunk(fasta)
        # More threads than cores make nothing faster.
        threads_each = max(1, min(threads or torch.get_num_threads(), usable_cores()) // len(names))
        logger.info(
            "%s: %d proteins, %d residues; %s, layers %s, %s, on %s",
            chunk.chunk,
            len(proteins),
            sum(len(protein.sequence) for protein in proteins),
            identity.model,
            ", ".join(map(str, identity.layers)),
            " and ".join(settings.pooling),
            ", ".join(names),
        )
        source = ChunkSource(
            chunk.chunk, chunk.digest, manifest.source_sha256, manifest.layers, manifest.demo, manifest.source
        )
        rows = _shares(proteins, manifest, settings, len(names))
        embedded = np.zeros(0, np.int64)
        if "per_residue" in settings.pooling:  # how many there are must be known before they stream into the file
            tokens = load_tokenizer(prepared).encode(
                [protein.sequence for protein in proteins], [protein.id for protein in proteins]
            )
            embedded = embedded_residues(np.array([len(ids) for ids in tokens], np.int64), settings.long_proteins)
            del tokens
        shapes = chunk_shapes(
            len(proteins),
            int(embedded.sum()),
            embed_dim=manifest.embed_dim,
            layers=identity.layers,
            pooling=settings.pooling,
            residue_dtype=settings.residue_dtype,
        )
        needed = sum(shape.nbytes for shape in shapes.values())
        what = f"writing the embeddings of {number(len(proteins), 'protein')}"
        check_space(output.parent, needed, what, largest=needed)
        blocks: dict[int, bytes] = {}
        head = header_entries(source) | header_entries(identity)
        writer = running.enter_context(open_chunk_file(output, shapes, head))
        regions: list[ResidueRegion | None] = [None] * len(names)
        if "per_residue" in settings.pooling:
            regions = [*writer.regions([int(embedded[own].sum()) for own in rows])]
        if len(names) == 1:
            torch.set_num_threads(threads_each)
            sink = writer.stream(regions[0]) if regions[0] else None
            embeddings = embed_proteins(
                proteins, prepared, settings, device=names[0], sink=sink, heard=heard, logger=logger
            )
        else:
            tasks = [
                ShareTask(
                    fasta=str(fasta),
                    weights=str(weights),
                    settings=settings,
                    share=share,
                    shares=len(names),
                    device=device,
                    threads=threads_each,
                    region=regions[share],
                )
                for share, device in enumerate(names)
            ]
            embeddings, blocks = embed_on_devices(processes, tasks, rows, output, logger)
        metadata = ChunkMetadata(source, identity, embeddings.run)
        writer.finish({"digests": digests, **embeddings.tensors}, metadata.to_entries(), blocks)
    done = embeddings.run.statistics
    logger.info("done: %d tokens in %.1f s, %.0f tokens/s", done.tokens, done.seconds, done.tokens_per_second)
    return done


def run_share(folder: Path, logger: logging.Logger) -> None:
    """What the process of one device of several does: the share that the task in ``folder`` names, left in ``folder``.

    Raises:
        UserError: see :func:`embed_chunk`.
    """
    task = read_record(folder / TASK_FILE, ShareTask)
    torch.set_num_threads(task.threads)
    weights = read_weights(Path(task.weights))
    _, proteins, _ = read_chunk(Path(task.fasta))
    own = [proteins[row] for row in _shares(proteins, weights.manifest, task.settings, task.shares)[task.share]]
    region = task.region
    with ExitStack() as stack:
        blocks = sink = None
        if region is not None:
            blocks = stack.enter_context(BlockWriter(Path(region.file), region.data_start, region.data_size))
            sink = ResidueStream(region, blocks)
        embeddings = embed_proteins(own, weights, task.settings, device=task.device, sink=sink, logger=logger)
        write_part(folder, embeddings, blocks.finish() if blocks else {})


def _shares(
    proteins: Sequence[Protein], manifest: WeightsManifest, settings: EmbeddingSettings, shares: int
) -> list[NDArray[np.int64]]:
    """The rows of each device: the same in every process that asks."""
    costs = protein_costs(
        np.array([len(protein.sequence) for protein in proteins]),
        embed_dim=manifest.embed_dim,
        long_proteins=settings.long_proteins,
    )
    return balanced_shares(costs, shares)


def read_chunk(fasta: Path) -> tuple[ChunkManifest, list[Protein], NDArray[np.uint8]]:
    """A chunk's manifest, and its proteins, checked against it.

    Returns:
        The manifest, proteins in row order, and uint8 digests ``(n, 16)`` of their residues.

    Raises:
        UserError: the manifest is damaged, or the FASTA holds other proteins than it was written for.
    """
    chunk = read_record(fasta.with_suffix(".json"), ChunkManifest)
    proteins = [Protein(record.id, record.sequence) for record in read_fasta(fasta)]
    digests = b"".join(residue_digest(protein.sequence) for protein in proteins)
    if digest_of_digests([digests]) != chunk.digest or len(proteins) != chunk.proteins:
        raise UserError(
            f"{fasta} does not hold the proteins that {chunk.chunk} was made with: "
            "it was changed or cut short; delete the sample's chunks folder and run the same command again"
        )
    return chunk, proteins, np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16)
