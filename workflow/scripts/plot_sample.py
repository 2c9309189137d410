"""Draw one sample: lengths, what was done to its sequences, and a map of its embeddings."""

from pathlib import Path

from virnucpro.jobs import job
from virnucpro.report.figures import SAMPLE_PLOTS, plot_sample

with job(f"plot_sample {snakemake.wildcards.sample}", snakemake.log[0]) as log:
    plot_sample(
        Path(snakemake.input.report),
        Path(snakemake.input.index),
        [Path(file) for file in snakemake.input.chunk_files],
        {name: [Path(file) for file in snakemake.output[name]] for name in SAMPLE_PLOTS},
        logger=log,
    )
