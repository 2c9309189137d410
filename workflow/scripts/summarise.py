"""Sum up what all samples' merges reported, and draw it."""

from pathlib import Path

from virnucpro.jobs import job
from virnucpro.report.figures import RUN_PLOTS, plot_run
from virnucpro.report.summary import summarise

with job("summarise", snakemake.log[0]) as log:
    reports = [Path(report) for report in snakemake.input]
    plot_run(reports, {name: [Path(file) for file in snakemake.output[name]] for name in RUN_PLOTS})
    summarise(
        reports,
        Path(snakemake.output.table),
        Path(snakemake.output.text),
        chunks=Path(snakemake.output.chunks),
        page=Path(snakemake.output.page),
        logger=log,
    )
