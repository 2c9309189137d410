"""Join a sample's two kinds of vectors by the frames' ids, and score every frame."""

from pathlib import Path

from virnucpro.jobs import job

with job(f"classify_frames {snakemake.wildcards.sample}", snakemake.log[0]) as log:
    from virnucpro.base.settings import EmbeddingSettings
    from virnucpro.calling.classifier import load_classifier
    from virnucpro.calling.frames import Embedded, classify_frames
    from virnucpro.calling.state import CallFiles, NucleotideFiles
    from virnucpro.storage.sample_files import PoolFiles

    kinds = []
    folder = Path(snakemake.output.scores).parent
    for prefix, files in (("", CallFiles(folder)), ("nucleotide_", NucleotideFiles(folder))):
        weights = Path(snakemake.input[f"{prefix}weights"][0])
        embedding = EmbeddingSettings(**snakemake.params[f"{prefix}settings"])
        pool = PoolFiles(Path(snakemake.params[f"{prefix}pool"]))
        kinds.append(Embedded.by(weights, embedding, files.index, pool))
    classifier = load_classifier(Path(snakemake.input.classifier[0]))
    classify_frames(*kinds, classifier, Path(snakemake.output.scores), threads=snakemake.threads, logger=log)
