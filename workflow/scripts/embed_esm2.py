"""Embed one chunk of proteins, or of nucleotides, on the devices that this job has."""

from pathlib import Path

from virnucpro.cuda.lease import lease_devices
from virnucpro.engine.processes import device_processes
from virnucpro.jobs import job

with (
    job(snakemake.wildcards.chunk, snakemake.log[0]) as log,
    lease_devices(snakemake.resources.gpu, logger=log),
    device_processes(range(snakemake.resources.gpu)) as processes,
):
    # CUDA reads the leased devices when torch starts, so torch is imported after the lease; by all processes at once.
    from virnucpro.base.settings import EmbeddingSettings
    from virnucpro.engine.job import embed_chunk

    embed_chunk(
        Path(snakemake.input.proteins[0]),
        Path(snakemake.input.weights[0]),
        Path(snakemake.output[0]),
        EmbeddingSettings(**snakemake.params.settings),
        require_gpu=snakemake.params.require_gpu,
        threads=snakemake.threads,
        processes=processes,
        logger=log,
    )
