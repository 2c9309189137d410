"""Verify samples' chunk files and write their tables."""

import json
import shlex
from pathlib import Path

from virnucpro.jobs import job


def as_text(value):
    """A config value as ``--config`` reads it."""
    return value if isinstance(value, str) else json.dumps(value)


reports = [Path(report) for report in snakemake.output.report]
name = reports[0].parent.name if len(reports) == 1 else f"{len(reports)} samples"
with job(f"merge_embeddings {name}", snakemake.log[0]) as log:
    from virnucpro.base.settings import EmbeddingSettings, TableSettings
    from virnucpro.chunking.manifest import read_split
    from virnucpro.storage.chunk_metadata import identity
    from virnucpro.storage.merge import merge_embeddings
    from virnucpro.storage.sample_files import SampleFiles
    from virnucpro.storage.state import table_settings
    from virnucpro.weights.manifest import read_manifest

    settings = EmbeddingSettings(**snakemake.params.settings)
    tables = TableSettings(**snakemake.params.tables)
    chunks = Path(snakemake.params.chunks)
    split, verified = read_split(chunks), {}
    expected = identity(read_manifest(Path(snakemake.input.weights[0])), settings)
    command = "snakemake --config " + shlex.join(f"{key}={as_text(value)}" for key, value in snakemake.config.items())
    for number, report in enumerate(reports):
        merge_embeddings(
            SampleFiles(report.parent).index,
            chunks,
            Path(snakemake.params.tensors),
            {name: Path(snakemake.output[name][number]) for name in tables.formats},
            report,
            expected=expected,
            made_from=table_settings(settings, tables),
            dtype=tables.dtype,
            records_per_file=tables.records_per_file,
            command=command,
            split=split,
            verified=verified,
            threads=snakemake.threads,
            logger=log,
        )
