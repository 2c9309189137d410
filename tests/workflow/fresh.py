"""The tables that a run gives where nothing was there before: the package's steps, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.unit.splitting import split_proteins
from virnucpro.base.digest import FileDigests
from virnucpro.base.settings import EmbeddingSettings, InputPolicies, LongProteins, TableSettings
from virnucpro.engine.job import embed_chunk
from virnucpro.models.reference import ModelRef
from virnucpro.storage.chunk_metadata import identity
from virnucpro.storage.merge import merge_embeddings
from virnucpro.storage.tables import TABLES
from virnucpro.weights.manifest import WeightsRequest
from virnucpro.weights.prepare import prepare_weights

LOGGER = logging.getLogger("fresh")
POLICIES = ("empty_records", "duplicate_ids", "empty_samples", "suspicious")


def write_fresh_tables(folder: Path, inputs: Sequence[Path], width: int, settings: Mapping[str, Any]) -> Path:
    """Write the tables of a sample into a new folder.

    Args:
        width: the model's width that chunks are cut for; the workflow goes by the model's name.
        settings: ``model``, ``chunk_residues``, and others by the names of ``virnucpro.embed``'s arguments.
    """
    embedding = EmbeddingSettings(
        tuple(settings.get("layers", ("last",))),
        tuple(settings.get("pooling", ("mean",))),
        settings.get("precision", "auto"),
        LongProteins.of(settings.get("long_proteins", "window")),
    )
    named = {name: settings[name] for name in ("dtype", "records_per_file") if name in settings}
    tables = TableSettings(tuple(settings.get("formats", ("parquet",))), **named)
    weights = WeightsRequest.of(ModelRef.of(settings["model"]), folder, FileDigests()).file
    manifest = prepare_weights(ModelRef.of(settings["model"]), weights, log=LOGGER.debug)
    index, chunks = folder / "proteins.parquet", folder / "chunks"
    split_proteins(
        inputs,
        index,
        chunks,
        chunk_residues=settings["chunk_residues"],
        embed_dim=width,
        long_proteins=embedding.long_proteins,
        policies=InputPolicies(**{name: settings[name] for name in POLICIES if name in settings}),
    )
    tensors = folder / "tensors"
    for fasta in sorted(chunks.glob("*.fasta")):
        output = tensors / f"{fasta.stem}.safetensors"
        embed_chunk(fasta, weights, output, embedding, devices=["cpu"], logger=LOGGER)
    merge_embeddings(
        index,
        chunks,
        tensors,
        {name: folder / TABLES[name].name for name in tables.formats},
        folder / "embeddings.json",
        expected=identity(manifest, embedding),
        dtype=tables.dtype,
        records_per_file=tables.records_per_file,
    )
    return folder
