"""Cut a sample's contigs into windows and translate them in six frames."""

from pathlib import Path

from virnucpro.base.digest import file_sha256
from virnucpro.base.products import write_products
from virnucpro.jobs import job
from virnucpro.sequences.translation import translate_contigs
from virnucpro.storage.identity import translation_origin

with job(f"translate_contigs {snakemake.wildcards.sample}", snakemake.log[0]) as log:
    contigs = [Path(file) for file in snakemake.input.given]
    window = snakemake.params.window
    origin = translation_origin([file_sha256(path) for path in contigs], window)
    outputs = Path(snakemake.output.proteins), Path(snakemake.output.nucleotides)
    translate_contigs(contigs, *outputs, window=window, logger=log)
    write_products(Path(snakemake.output.record), origin, outputs)
