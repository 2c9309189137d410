"""Join a sample's two kinds of vectors by the frames' ids, and score every frame."""

from pathlib import Path

from virnucpro.jobs import job

with job(f"classify_frames {snakemake.wildcards.sample}", snakemake.log[0]) as log:
    from virnucpro.base.settings import EmbeddingSettings
    from virnucpro.calling.classifier import load_classifier
    from virnucpro.calling.join import Embedded, classify_frames
    from virnucpro.calling.state import frame_identity
    from virnucpro.weights.manifest import read_manifest

    kinds = []
    for index, weights, tensors, chunks, settings in (
        ("index", "weights", "chunk_files", "chunks", "settings"),
        ("nucleotide_index", "nucleotide_weights", "nucleotide_files", "nucleotide_chunks", "nucleotide_settings"),
    ):
        manifest = read_manifest(Path(snakemake.input[weights][0]))
        embedding = EmbeddingSettings(**snakemake.params[settings])
        kinds.append(
            Embedded(
                Path(snakemake.input[index][0]),
                Path(snakemake.params[chunks]),
                [Path(file) for file in snakemake.input.get(tensors, [])],
                frame_identity(manifest, manifest.model, embedding),
            )
        )
    classifier = load_classifier(Path(snakemake.input.classifier[0]))
    classify_frames(*kinds, classifier, Path(snakemake.output.scores), threads=snakemake.threads, logger=log)
