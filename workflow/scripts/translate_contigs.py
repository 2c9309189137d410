"""Cut a sample's contigs into windows and translate them in six frames."""

from pathlib import Path

from virnucpro.jobs import job

with job(f"translate_contigs {snakemake.wildcards.sample}", snakemake.log[0]) as log:
    from virnucpro.base.digest import write_products
    from virnucpro.base.settings import InputPolicies
    from virnucpro.sequences.translation import translate_contigs
    from virnucpro.storage.state import translation_origin

    window, policies = snakemake.params.window, InputPolicies(**snakemake.params.policies)
    outputs = [Path(snakemake.output[name]) for name in ("proteins", "nucleotides", "skipped")]
    contigs = [Path(file) for file in snakemake.params.files]
    counts = translate_contigs(contigs, *outputs, window=window, policies=policies, logger=log)
    write_products(Path(snakemake.output.record), translation_origin(counts.inputs, window, policies), outputs)
