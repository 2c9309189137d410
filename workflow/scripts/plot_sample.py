"""Draw samples: lengths, what was done to their sequences, and a map of their embeddings."""

from pathlib import Path

from virnucpro.jobs import job

records = [Path(record) for record in snakemake.output.record]
name = records[0].parents[1].name if len(records) == 1 else f"{len(records)} samples"
with job(f"plot_sample {name}", snakemake.log[0]) as log:
    from virnucpro.base.digest import file_sha256, write_products
    from virnucpro.chunking.manifest import read_split
    from virnucpro.report import SAMPLE_PLOTS
    from virnucpro.report.sample import plot_sample
    from virnucpro.storage.sample_files import PoolFiles
    from virnucpro.storage.state import plots_origin, sha256_by_sample

    metadata = Path(snakemake.params.metadata) if snakemake.params.metadata else None
    table = file_sha256(metadata) if metadata else ""

    pool = PoolFiles(Path(snakemake.params.pool))
    split = read_split(pool.chunks)
    for number, record in enumerate(records):
        report = Path(snakemake.input.sample_report[number])
        origin = plots_origin(sha256_by_sample([report]), table)
        plots = {
            name: [Path(file) for file in snakemake.output[name][2 * number : 2 * number + 2]] for name in SAMPLE_PLOTS
        }
        page = Path(snakemake.output.page[number])
        plot_sample(report, pool, plots, page, metadata=metadata, split=split, logger=log)
        write_products(record, origin, [page, *(file for files in plots.values() for file in files)])
