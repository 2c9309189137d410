"""Put VirNucPro's classifier where the jobs read it, checked against the models whose features it will get."""

from pathlib import Path

from virnucpro.jobs import job

with job("prepare_classifier", snakemake.log[0]) as log:
    from virnucpro.calling.classifier_file import prepare_classifier

    source = snakemake.params.source
    prepare_classifier(
        source and Path(source),
        Path(snakemake.input.weights[0]),
        Path(snakemake.input.nucleotide_weights[0]),
        Path(snakemake.output[0]),
        snakemake.params.window,
        expected_sha256=snakemake.params.source_sha256,
        logger=log,
    )
