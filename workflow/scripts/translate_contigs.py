"""Cut a sample's contigs into windows and translate them in six frames."""

from pathlib import Path

from virnucpro.jobs import job
from virnucpro.sequences.translation import translate_contigs

with job(f"translate_contigs {snakemake.wildcards.sample}", snakemake.log[0]) as log:
    translate_contigs(
        [Path(file) for file in snakemake.input],
        Path(snakemake.output.proteins),
        Path(snakemake.output.nucleotides),
        window=snakemake.params.window,
        logger=log,
    )
