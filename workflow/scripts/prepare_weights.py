"""Put a model's weights where the embed jobs read them."""

from pathlib import Path

from virnucpro.jobs import job

with job("prepare_weights", snakemake.log[0]) as log:
    from virnucpro.models.reference import ModelRef
    from virnucpro.weights.prepare import prepare_weights

    prepare_weights(
        ModelRef.of(*snakemake.params.model),
        Path(snakemake.output[0]),
        digests=snakemake.params.digests,
        log=log.info,
    )
