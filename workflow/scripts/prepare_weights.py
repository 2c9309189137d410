"""Put a model's weights where the embed jobs read them."""

from pathlib import Path

from virnucpro.jobs import job

with job("prepare_weights", snakemake.log[0]) as log:
    from virnucpro.weights.prepare import prepare_weights

    prepare_weights(
        snakemake.params.model, Path(snakemake.output[0]), source_sha256=snakemake.params.source_sha256, log=log.info
    )
