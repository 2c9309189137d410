"""Merge scores of frames to windows, and windows to a call for every contig of a sample."""

from pathlib import Path

from virnucpro.jobs import job

with job(f"call_contigs {snakemake.wildcards.sample}", snakemake.log[0]) as log:
    from virnucpro.base.settings import InputPolicies
    from virnucpro.calling.contigs import call_contigs
    from virnucpro.calling.state import CallFiles, CallRule

    call_contigs(
        [Path(file) for file in snakemake.params.files],
        CallFiles(Path(snakemake.output.record).parents[1]),
        window=snakemake.params.window,
        rule=CallRule(**snakemake.params.rule),
        policies=InputPolicies(**snakemake.params.policies),
        logger=log,
    )
