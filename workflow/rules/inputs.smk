# What each rule's files are made from, what its jobs ask for, and the files that the whole run makes.


def checkpoint_of(wildcards):
    """What the weights are prepared from, where the user named files."""
    return tied(state.weights_stale, run.model.files)


def contigs_of(wildcards):
    """What a sample is translated from."""
    return tied(
        partial(state.translation_stale, wildcards.sample),
        run.samples[wildcards.sample],
    )


def proteins_of(wildcards):
    """What a sample is split from: its own FASTA files, or what its contigs are translated to."""
    sample = wildcards.sample
    why_stale = partial(state.split_stale, sample)
    if run.input == "nucleotide":
        return tied(why_stale, translated=str(TRANSLATED).format(sample=sample))
    return tied(why_stale, run.samples[sample])


def chunk_files_after(split, pattern, sample):
    """The chunk files of a sample by a pattern of their paths, known once the checkpoint `split` has run."""
    folder = Path(split.get(sample=sample).output.chunks)
    names = sorted(path.stem for path in folder.glob("chunk_*.json"))
    return expand(pattern, sample=sample, chunk=names)


def chunk_files_of(sample):
    return chunk_files_after(checkpoints.split_proteins, CHUNK_FILE, sample)


def chunk_files(wildcards):
    return chunk_files_of(wildcards.sample)


def all_chunk_files(wildcards):
    return [file for sample in run.samples for file in chunk_files_of(sample)]


def chunk_in(state, chunks, wildcards):
    """What a chunk file is made from: the weights of `state`, and a chunk in the folder `chunks`."""
    chunk = str(chunks / wildcards.chunk).format(sample=wildcards.sample)
    return tied(
        partial(state.chunk_stale, wildcards.sample, wildcards.chunk),
        chunk_manifest=f"{chunk}.json",
        proteins=f"{chunk}.fasta",
        weights=state.weights.file,
        gpu_report=GPU_REPORT,
    )


def chunk_of(wildcards):
    return chunk_in(state, CHUNKS, wildcards)


def tables_of(wildcards):
    """What a sample's tables are made from."""
    files = chunk_files(wildcards)
    return tied(
        partial(state.tables_stale, wildcards.sample),
        index=state.samples[wildcards.sample].index,
        weights=WEIGHTS,
        chunk_files=files,
    )


def of_a_merged_sample(wildcards, why_stale, given=()):
    """What is made of a sample once it is merged: from its report, its index and its chunk files."""
    files = chunk_files(wildcards)
    sample = state.samples[wildcards.sample]
    return tied(
        partial(why_stale, wildcards.sample),
        given,
        sample_report=sample.report,
        index=sample.index,
        chunk_files=files,
    )


def plots_of(wildcards):
    """What a sample's plots are made from."""
    return of_a_merged_sample(
        wildcards, state.plots_stale, [run.metadata] if run.metadata else []
    )


def neighbours_of(wildcards):
    """What a sample's neighbours are found among."""
    return of_a_merged_sample(wildcards, state.neighbours_stale)


def all_neighbours():
    names = ["neighbours.tsv", "neighbours.json"] if run.neighbours else []
    return expand(SAMPLE / "{name}", sample=run.samples, name=names)


def reports_of_all(wildcards):
    """What the run's summary is made from."""
    products = {
        "reports": expand(SAMPLE / "embeddings.json", sample=run.samples),
        "maps": expand(SAMPLE_PLOTS / "map.png", sample=run.samples),
    }
    if calls is None:
        return tied(partial(state.summary_stale, SUMMARY_RECORD), **products)
    why_stale = partial(calls.summary_stale, SUMMARY_RECORD)
    return tied(why_stale, **products, calls=all_calls())


def all_nucleotide_files(wildcards):
    samples = run.samples if calls is not None else ()
    return [file for sample in samples for file in nucleotide_files_of(sample)]


def call_plots():
    if calls is None:
        return []
    names = [
        f"call_{plot}.{kind}"
        for plot in ("tracks", "scores", "counts")
        for kind in ("svg", "png")
    ]
    return expand(
        SAMPLE_PLOTS / "{plot}", sample=run.samples, plot=[*names, "calls.json"]
    )


def all_calls():
    """The record of every sample's calls."""
    return [] if calls is None else expand(CALLS / "calls.json", sample=run.samples)


def embed_memory(wildcards, input, attempt):
    return embed_memory_mb(
        planning_architecture(run.model),
        read_record(Path(input.chunk_manifest[0]), ChunkManifest),
        layers=len(run.embedding.layers),
        vectors=run.embedding.vectors,
        per_residue="per_residue" in run.embedding.pooling,
        gpus=run.gpus_per_job,
        attempt=attempt,
    )


def embed_threads(chunks):
    """Threads of a job that embeds one of a sample's chunks: on the CPUs of this machine, its share of the cores."""

    def threads(wildcards):
        cores = workflow.resource_settings.cores
        if run.device == "gpu" or not workflow.local_exec or cores is None:
            return FEW_CORES
        folder = str(chunks).format(sample=wildcards.sample)
        count = len(list(Path(folder).glob("chunk_*.json")))
        return max(FEW_CORES, cores // max(1, count))

    return threads


FEW_CORES = 4
"""Threads of a job that embeds; on a GPU they feed it."""


def embed_time(wildcards, input, threads, attempt):
    return embed_minutes(
        planning_architecture(run.model),
        read_record(Path(input.chunk_manifest[0]), ChunkManifest),
        gpus=run.gpus_per_job,
        threads=threads,
        attempt=attempt,
    )


def table(name):
    path = SAMPLE / TABLES[name].name
    return directory(path) if TABLES[name].is_folder else path


def all_tables():
    """What the merges make, of every sample and in every format: gone or newly asked for, it is made again."""
    files = [SAMPLE / TABLES[name].name for name in run.tables.formats]
    return expand([*files, SAMPLE / "embeddings.json"], sample=run.samples)


def sample_plots():
    return expand(
        SAMPLE_PLOTS / "{plot}",
        sample=run.samples,
        plot=[*PLOTS_OF_A_SAMPLE, "plots.json"],
    )
