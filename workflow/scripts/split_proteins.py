"""Read, clean and deduplicate all samples' proteins, or their frames' nucleotides; cut what is new into chunks."""

from pathlib import Path

from virnucpro.jobs import job

with job(snakemake.rule, snakemake.log[0]) as log:
    from virnucpro.base.digest import recorded
    from virnucpro.base.records import from_entries
    from virnucpro.base.settings import EmbeddingSettings
    from virnucpro.calling.state import NucleotideFiles
    from virnucpro.chunking.manifest import SplitSettings
    from virnucpro.chunking.split import ToSplit, split_samples
    from virnucpro.sequences.intake import PROTEINS
    from virnucpro.sequences.translation import FRAME_BASES
    from virnucpro.storage.pool import Finder
    from virnucpro.storage.reuse import Reuse, reported_devices
    from virnucpro.storage.sample_files import SampleFiles
    from virnucpro.weights.manifest import WeightsRequest

    of_bases = snakemake.rule.endswith("split_nucleotides")
    translated = [Path(file) for file in snakemake.input.get("translated", [])]
    samples = {}
    for number, (name, files) in enumerate(snakemake.params.samples.items()):
        inputs, made_as = [Path(file) for file in files], None
        if translated:
            inputs = [translated[number]]
            made_as = [recorded(inputs[0].with_name("translated.json"), inputs[0]).sha256]
        sample = (NucleotideFiles if of_bases else SampleFiles)(Path(snakemake.params.results) / name)
        samples[name] = ToSplit(inputs, sample.index, sample.skipped, made_as)
    reuse, given = None, snakemake.params.reuse
    if given:
        sources = tuple(Path(source) for source in given["sources"])
        devices = reported_devices(Path(snakemake.input.gpu_report[0]))
        reuse = Reuse(sources, Path(given["index"]), devices, given["any_device"])
    find = Finder(
        Path(snakemake.params.tensors),
        EmbeddingSettings(**snakemake.params.embedding),
        WeightsRequest(**snakemake.params.weights),
        reuse=reuse,
        logger=log,
    )
    split_samples(
        samples,
        Path(snakemake.output.chunks),
        from_entries(snakemake.params.split, SplitSettings, Path("params")),
        kind=FRAME_BASES if of_bases else PROTEINS,
        find=find,
        logger=log,
    )
