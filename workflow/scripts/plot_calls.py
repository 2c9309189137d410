"""Draw the calls of one sample: tracks along its strongest contigs, distributions of scores, counts."""

from pathlib import Path

from virnucpro.jobs import job

with job(f"plot_calls {snakemake.wildcards.sample}", snakemake.log[0]):
    from virnucpro.base.digest import file_sha256, write_products
    from virnucpro.report import CALL_PLOTS
    from virnucpro.report.call_plots import plot_calls
    from virnucpro.storage.state import reports_origin

    calls = Path(snakemake.input.calls[0])
    origin = reports_origin({calls.parents[1].name: file_sha256(calls)})
    plot_calls(calls, {name: [Path(file) for file in snakemake.output[name]] for name in CALL_PLOTS})
    record = Path(snakemake.output.record)
    write_products(record, origin, [Path(file) for file in snakemake.output if Path(file) != record])
