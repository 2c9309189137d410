"""Write one map of the proteins of all samples."""

from pathlib import Path

from virnucpro.jobs import job

with job("map_samples", snakemake.log[0]) as log:
    from virnucpro.base.digest import file_sha256, write_products
    from virnucpro.report.sample import map_samples
    from virnucpro.storage.sample_files import PoolFiles
    from virnucpro.storage.state import plots_origin, sha256_by_sample

    reports = [Path(report) for report in snakemake.input.reports]
    metadata = Path(snakemake.params.metadata) if snakemake.params.metadata else None
    origin = plots_origin(sha256_by_sample(reports), file_sha256(metadata) if metadata else "")
    page = Path(snakemake.output.page)
    map_samples(reports, PoolFiles(Path(snakemake.params.pool)), page, metadata=metadata, logger=log)
    write_products(Path(snakemake.output.record), origin, [page])
