"""Read, clean and deduplicate a sample's proteins, or its frames' nucleotides; cut them into chunks of equal work."""

from pathlib import Path

from virnucpro.jobs import job

with job(f"split_proteins {snakemake.wildcards.sample}", snakemake.log[0]) as log:
    from virnucpro.base.digest import recorded
    from virnucpro.base.settings import InputPolicies, LongProteins
    from virnucpro.chunking.split import split_proteins
    from virnucpro.sequences.intake import PROTEINS
    from virnucpro.sequences.translation import FRAME_BASES

    translated = [Path(file) for file in snakemake.input.get("translated", [])]
    split_proteins(
        translated or [Path(file) for file in snakemake.params.get("files", [])],
        Path(snakemake.output.index),
        Path(snakemake.output.chunks),
        Path(snakemake.output.skipped),
        chunk_residues=snakemake.params.chunk_residues,
        multiple_of=snakemake.params.multiple_of,
        embed_dim=snakemake.params.embed_dim,
        long_proteins=LongProteins(**snakemake.params.long_proteins),
        policies=InputPolicies(**snakemake.params.policies),
        made_as=[recorded(file.with_suffix(".json"), file).sha256 for file in translated] or None,
        kind=FRAME_BASES if snakemake.rule.endswith("split_nucleotides") else PROTEINS,
        logger=log,
    )
