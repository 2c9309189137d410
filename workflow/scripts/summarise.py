"""Sum up what all samples' merges reported."""

from pathlib import Path

from virnucpro.jobs import job
from virnucpro.report.summary import summarise

with job("summarise", snakemake.log[0]) as log:
    summarise(
        [Path(report) for report in snakemake.input],
        Path(snakemake.output.table),
        Path(snakemake.output.text),
        logger=log,
    )
