"""List the nearest neighbours of each protein of a sample."""

from pathlib import Path

from virnucpro.jobs import job

with job(f"find_neighbours {snakemake.wildcards.sample}", snakemake.log[0]) as log:
    from virnucpro.base.digest import write_products
    from virnucpro.report.neighbours import find_neighbours
    from virnucpro.storage.sample_files import PoolFiles
    from virnucpro.storage.state import neighbours_origin, sha256_by_sample

    report, table = Path(snakemake.input.sample_report[0]), Path(snakemake.output.table)
    count = snakemake.params.neighbours
    origin = neighbours_origin(sha256_by_sample([report]), count)
    find_neighbours(report, PoolFiles(Path(snakemake.params.pool)), table, count, logger=log)
    write_products(Path(snakemake.output.record), origin, [table])
