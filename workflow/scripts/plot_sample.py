"""Draw one sample: lengths, what was done to its sequences, and a map of its embeddings."""

from pathlib import Path

from virnucpro.jobs import job

with job(f"plot_sample {snakemake.wildcards.sample}", snakemake.log[0]) as log:
    from virnucpro.base.digest import file_sha256, write_products
    from virnucpro.report.sample import SAMPLE_PLOTS, plot_sample
    from virnucpro.storage.state import plots_origin

    report = Path(snakemake.input.sample_report[0])
    metadata = Path(snakemake.params.metadata) if snakemake.params.metadata else None
    origin = plots_origin({report.parent.name: file_sha256(report)}, file_sha256(metadata) if metadata else "")
    plot_sample(
        report,
        Path(snakemake.input.index[0]),
        [Path(file) for file in snakemake.input.chunk_files],
        {name: [Path(file) for file in snakemake.output[name]] for name in SAMPLE_PLOTS},
        Path(snakemake.output.page),
        metadata=metadata,
        logger=log,
    )
    record = Path(snakemake.output.record)
    write_products(record, origin, [Path(file) for file in snakemake.output if Path(file) != record])
