"""Verify a sample's chunk files and write its tables."""

import json
import shlex
from pathlib import Path

from virnucpro.jobs import job


def as_text(value):
    """A config value as ``--config`` reads it."""
    return value if isinstance(value, str) else json.dumps(value)


with job(f"merge_embeddings {snakemake.wildcards.sample}", snakemake.log[0]) as log:
    from virnucpro.base.settings import EmbeddingSettings, TableSettings
    from virnucpro.storage.chunk_metadata import identity
    from virnucpro.storage.merge import merge_embeddings
    from virnucpro.storage.state import table_settings
    from virnucpro.weights.manifest import read_manifest

    settings = EmbeddingSettings(**snakemake.params.settings)
    tables = TableSettings(**snakemake.params.tables)
    merge_embeddings(
        Path(snakemake.input.index[0]),
        Path(snakemake.params.chunks),
        [Path(file) for file in snakemake.input.chunk_files],
        {name: Path(snakemake.output[name]) for name in tables.formats},
        Path(snakemake.output.report),
        expected=identity(read_manifest(Path(snakemake.input.weights[0])), settings),
        made_from=table_settings(settings, tables),
        dtype=tables.dtype,
        records_per_file=tables.records_per_file,
        command="snakemake --config "
        + shlex.join(f"{key}={as_text(value)}" for key, value in snakemake.config.items()),
        threads=snakemake.threads,
        logger=log,
    )
