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
    """What all samples are split from: their own FASTA files, or what their contigs are translated to."""
    if run.input == "nucleotide":
        translated = expand(TRANSLATED, sample=run.samples)
        return tied(
            state.split_stale, translated=translated, **read_before_reuse(state)
        )
    files = [file for sample in run.samples.values() for file in sample]
    return tied(state.split_stale, files, **read_before_reuse(state))


def read_before_reuse(state):
    """What a split reads that looks at earlier results: which weights and devices are theirs."""
    return dict(prepared=state.weights.file, gpu_report=GPU_REPORT) if run.reuse else {}


def chunk_files_after(split, state, samples):
    """The chunk files that samples need and that jobs make, known once the checkpoint `split` has run."""
    allowed = workflow.dag_settings.allowed_rules
    if not allowed or split.rule.name in allowed:
        split.get()
    # else it can't run (in jobs of a cluster, in generated unit tests): the split stands as it is.
    record = state.split()
    names = {
        name for sample in samples for name in record.to_embed(record.samples[sample])
    }
    return [str(state.pool.chunk_file(name)) for name in sorted(names)]


def chunk_files_of(*samples):
    return chunk_files_after(checkpoints.split_proteins, state, samples)


def all_chunk_files(wildcards):
    return chunk_files_of(*run.samples)


def chunk_in(state, wildcards):
    """What a chunk file is made from: the weights of `state`, and a chunk of its split."""
    chunk = str(state.pool.chunks / wildcards.chunk)
    return tied(
        partial(state.chunk_stale, wildcards.chunk),
        chunk_manifest=f"{chunk}.json",
        proteins=f"{chunk}.fasta",
        weights=state.weights.file,
        gpu_report=GPU_REPORT,
    )


def chunk_of(wildcards):
    return chunk_in(state, wildcards)


def tables_of(wildcards):
    """What a sample's tables are made from."""
    files = chunk_files_of(wildcards.sample)
    return tied(
        partial(state.tables_stale, wildcards.sample),
        split=CHUNKS,
        index=state.samples[wildcards.sample].index,
        weights=WEIGHTS,
        chunk_files=files,
    )


def tables_of_several(samples):
    """What one job makes the tables of several samples from."""

    def inputs(wildcards):
        reasons = (state.tables_stale(sample) for sample in samples)
        return tied(
            lambda: first_reason(reasons),
            split=CHUNKS,
            weights=WEIGHTS,
            chunk_files=chunk_files_of(*samples),
        )

    return inputs


def first_reason(reasons):
    """The reason for which a job that does several samples runs: not what is missing, where another is another way."""
    found = [reason for reason in reasons if reason is not None]
    return next((reason for reason in found if reason != MISSING), *found[:1] or [None])


def plots_of_several(samples):
    """What one job draws the plots of several samples from."""

    def inputs(wildcards):
        reasons = (state.plots_stale(sample) for sample in samples)
        return tied(
            lambda: first_reason(reasons),
            [run.metadata] if run.metadata else [],
            sample_report=[state.samples[sample].report for sample in samples],
            split=CHUNKS,
            chunk_files=chunk_files_of(*samples),
        )

    return inputs


def of_a_merged_sample(wildcards, why_stale, given=()):
    """What is made of a sample once it is merged: from its report, its index and its chunk files."""
    files = chunk_files_of(wildcards.sample)
    sample = state.samples[wildcards.sample]
    return tied(
        partial(why_stale, wildcards.sample),
        given,
        sample_report=sample.report,
        split=CHUNKS,
        **own_index(wildcards.sample),
        chunk_files=files,
    )


def own_index(sample):
    """The index of a sample that has jobs of its own."""
    return dict(index=state.samples[sample].index) if sample in WITH_OWN_JOBS else {}


def plots_of(wildcards):
    """What a sample's plots are made from."""
    return of_a_merged_sample(
        wildcards, state.plots_stale, [run.metadata] if run.metadata else []
    )


def map_of_all(wildcards):
    """What the map of all samples is made from."""
    return tied(
        partial(state.map_stale, MAP.with_suffix(".json")),
        [run.metadata] if run.metadata else [],
        reports=expand(SAMPLE / "embeddings.json", sample=run.samples),
        split=CHUNKS,
        chunk_files=chunk_files_of(*run.samples),
    )


def all_maps():
    """The map of all samples, where there are several."""
    return [MAP, MAP.with_suffix(".json")] if len(run.samples) > 1 else []


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
        "maps": [
            *expand(
                SAMPLE_PLOTS / "map.png",
                sample=run.samples if run.draws_samples else [],
            ),
            *all_maps(),
        ],
    }
    if calls is None:
        return tied(partial(state.summary_stale, SUMMARY_RECORD), **products)
    why_stale = partial(calls.summary_stale, SUMMARY_RECORD)
    return tied(why_stale, **products, calls=all_calls())


def all_nucleotide_files(wildcards):
    return [] if calls is None else nucleotide_files_of(*run.samples)


def call_plots():
    if calls is None:
        return []
    return [
        *expand(SAMPLE_PLOTS / "calls.json", sample=run.samples),
        *pictures(PLOTS_OF_CALLS),
    ]


def pictures(plots):
    """The files of some plots, of every sample."""
    return expand(
        SAMPLE_PLOTS / "{plot}.{kind}",
        sample=run.samples,
        plot=plots,
        kind=["svg", "png"],
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
    """Threads of a job that embeds one of the chunks in a folder: on the CPUs of this machine, its share of the cores."""

    def threads(wildcards):
        cores = workflow.resource_settings.cores
        if run.device == "gpu" or not workflow.local_exec or cores is None:
            return FEW_CORES
        count = len(list(Path(chunks).glob("chunk_*.json")))
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


def tables_of_format(name, samples):
    """The tables of several samples in one format."""
    paths = expand(SAMPLE / TABLES[name].name, sample=samples)
    return [directory(path) for path in paths] if TABLES[name].is_folder else paths


def all_tables():
    """What the merges make, of every sample and in every format: gone or newly asked for, it is made again."""
    files = [SAMPLE / TABLES[name].name for name in run.tables.formats]
    return expand([*files, SAMPLE / "embeddings.json"], sample=run.samples)


def sample_plots():
    if not run.draws_samples:
        return []
    others = expand(
        SAMPLE_PLOTS / "{name}", sample=run.samples, name=["map.html", "plots.json"]
    )
    return [*pictures(PLOTS_OF_SAMPLE), *others]


def only_embeds():
    """The steps that --until names, where they embed chunks and no step behind these is named.

    Their jobs are known once a checkpoint has run, and Snakemake (seen with 9.27) ends without a word before that when
    nothing is asked for that needs them.
    """
    until = set(workflow.dag_settings.until)
    before = {
        "prepare_weights",
        "detect_gpu",
        "translate_contigs",
        "split_proteins",
        "split_nucleotides",
        "prepare_dnabert_s",
    }
    embed = {"embed_esm2", "embed_dnabert_s"}
    return until & embed if until <= before | embed else set()


def what_is_made(wildcards):
    """All that the run makes of chunk files."""
    if only_embeds():
        return []
    return [
        *OF_THE_RUN,
        *all_tables(),
        *sample_plots(),
        *all_neighbours(),
        *all_maps(),
        *all_calls(),
        *call_plots(),
    ]


def chunk_files_asked_for(wildcards):
    return all_chunk_files(wildcards) if only_embeds() != {"embed_dnabert_s"} else []


def nucleotide_files_asked_for(wildcards):
    return all_nucleotide_files(wildcards) if only_embeds() != {"embed_esm2"} else []
