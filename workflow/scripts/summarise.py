"""Sum up what all samples' merges reported, and draw it."""

from pathlib import Path

from virnucpro.jobs import job

with job("summarise", snakemake.log[0]) as log:
    from virnucpro.base.digest import file_sha256, write_products
    from virnucpro.report import RUN_PLOTS
    from virnucpro.report.front import write_front_page
    from virnucpro.report.run_plots import plot_run
    from virnucpro.report.summary import summarise
    from virnucpro.storage.state import sha256_by_sample, summary_origin

    reports = [Path(report) for report in snakemake.input.reports]
    calls = [Path(record) for record in snakemake.input.get("calls", [])]
    origin = summary_origin(
        sha256_by_sample(reports),
        {record.parents[1].name: file_sha256(record) for record in calls},
    )
    plot_run(reports, {name: [Path(file) for file in snakemake.output[name]] for name in RUN_PLOTS})
    tables = [Path(snakemake.output[name]) for name in ("table", "text", "chunks")]
    summarise(reports, *tables, calls, logger=log)
    write_front_page(Path(snakemake.output.page), reports, calls)
    record = Path(snakemake.output.record)
    write_products(record, origin, [Path(file) for file in snakemake.output if Path(file) != record])
