# Needs: the frames of a sample's contigs, their ESM-2 chunk files, DNABERT-S's checkpoint, VirNucPro's classifier.
# Makes: DNABERT-S chunk files, a score for every frame, and the tables of frames, windows and contigs.


localrules:
    prepare_dnabert_s,
    prepare_classifier,


def nucleotide_checkpoint_of(wildcards):
    """What the nucleotides' weights are prepared from, where the user named files."""
    return tied(calls.nucleotides.weights_stale, run.calls.model.files)


def classifier_of(wildcards):
    """What the classifier is prepared from."""
    given = [] if run.calls.classifier is None else [run.calls.classifier]
    return tied(
        calls.classifier_stale,
        given,
        weights=WEIGHTS,
        nucleotide_weights=calls.nucleotides.weights.file,
    )


def frames_of(wildcards):
    """What the nucleotides of all samples are split from."""
    return tied(
        calls.nucleotides.split_stale,
        translated=[
            str(sample.translated) for sample in calls.nucleotides.samples.values()
        ],
        **read_before_reuse(calls.nucleotides),
    )


def nucleotide_files_of(*samples):
    return chunk_files_after(checkpoints.split_nucleotides, calls.nucleotides, samples)


def nucleotide_chunk_of(wildcards):
    return chunk_in(calls.nucleotides, wildcards)


def features_of(wildcards):
    """What the scores of a sample's frames are made from."""
    sample = wildcards.sample
    return tied(
        partial(calls.scores_stale, sample),
        split=CHUNKS,
        nucleotide_split=calls.nucleotides.pool.chunks,
        weights=WEIGHTS,
        nucleotide_weights=calls.nucleotides.weights.file,
        classifier=calls.classifier.file,
        chunk_files=chunk_files_of(sample),
        nucleotide_files=nucleotide_files_of(sample),
    )


def scores_of(wildcards):
    """What a sample's contigs are called from."""
    sample = wildcards.sample
    return tied(
        partial(calls.calls_stale, sample),
        run.samples[sample],
        scores=calls.files(sample).scores,
        translation=state.samples[sample].translation,
    )


def calls_of(wildcards):
    """What the plots of a sample's calls are made from."""
    sample = wildcards.sample
    return tied(
        partial(calls.plots_stale, sample), calls=calls.files(sample).calls_record
    )


def nucleotide_memory(wildcards, input, attempt):
    return embed_memory_mb(
        planning_architecture(run.calls.model, "dnabert_s"),
        read_record(Path(input.chunk_manifest[0]), ChunkManifest),
        gpus=run.gpus_per_job,
        attempt=attempt,
        letters=BASES,
    )


def nucleotide_time(wildcards, input, threads, attempt):
    return embed_minutes(
        planning_architecture(run.calls.model, "dnabert_s"),
        read_record(Path(input.chunk_manifest[0]), ChunkManifest),
        gpus=run.gpus_per_job,
        threads=threads,
        attempt=attempt,
        letters=BASES,
    )


rule prepare_dnabert_s:
    input:
        unpack(nucleotide_checkpoint_of),
    output:
        calls.nucleotides.weights.file,
    log:
        LOGS / "prepare_dnabert_s.log",
    benchmark:
        BENCHMARKS / "prepare_dnabert_s.tsv"
    conda:
        "../../envs/embed.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        model=run.calls.model.given,
        digests=calls.nucleotides.weights.digests,
    script:
        "../scripts/prepare_weights.py"


rule prepare_classifier:
    input:
        unpack(classifier_of),
    output:
        calls.classifier.file,
    log:
        LOGS / "prepare_classifier.log",
    benchmark:
        BENCHMARKS / "prepare_classifier.tsv"
    conda:
        "../../envs/embed.yaml"
    resources:
        mem_mb=4000,
        runtime=15,
    params:
        source=calls.classifier.source and str(calls.classifier.source),
        source_sha256=calls.classifier.source_sha256,
        window=run.window,
    script:
        "../scripts/prepare_classifier.py"


checkpoint split_nucleotides:
    input:
        unpack(frames_of),
    output:
        chunks=directory(calls.nucleotides.pool.chunks),
    log:
        LOGS / "split_nucleotides.log",
    benchmark:
        BENCHMARKS / "split_nucleotides.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=lambda wildcards, input, attempt: attempt * (2000 + input.size_mb),
        runtime=lambda wildcards, attempt: attempt * 120,
    params:
        samples=dict.fromkeys(run.samples, []),
        results=str(run.results),
        split=asdict(calls.nucleotides.pool.split_settings),
        embedding=asdict(run.calls.embedding),
        weights=asdict(calls.nucleotides.weights),
        tensors=str(calls.nucleotides.pool.tensors),
        reuse=REUSE,
    script:
        "../scripts/split_proteins.py"


rule embed_dnabert_s:
    input:
        unpack(nucleotide_chunk_of),
    output:
        calls.nucleotides.pool.tensors / "{chunk}.safetensors",
    log:
        LOGS / "embed_dnabert_s" / "{chunk}.log",
    benchmark:
        BENCHMARKS / "embed_dnabert_s" / "{chunk}.tsv"
    conda:
        "../../envs/embed.yaml"
    threads: embed_threads(calls.nucleotides.pool.chunks)
    resources:
        **GPU_JOB,
        gpu=run.gpus_per_job,
        mem_mb=nucleotide_memory,
        runtime=nucleotide_time,
    params:
        settings=asdict(run.calls.embedding),
        require_gpu=run.require_gpu,
    script:
        "../scripts/embed_esm2.py"


rule classify_frames:
    input:
        unpack(features_of),
    output:
        scores=SCORES,
        record=SCORES.with_suffix(".json"),
    log:
        LOGS / "{sample}" / "classify_frames.log",
    benchmark:
        BENCHMARKS / "{sample}" / "classify_frames.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 4000,
        runtime=lambda wildcards, attempt: attempt * 120,
    params:
        pool=str(state.pool.folder),
        nucleotide_pool=str(calls.nucleotides.pool.folder),
        settings=asdict(run.embedding),
        nucleotide_settings=asdict(run.calls.embedding),
    script:
        "../scripts/classify_frames.py"


rule call_contigs:
    input:
        unpack(scores_of),
    output:
        frames=CALLS / "frames.parquet",
        frames_text=CALLS / "frames.tsv",
        predictions=CALLS / "prediction_results.txt",
        windows=CALLS / "prediction_results_highestscore.csv",
        contigs=report(
            CALLS / "contigs.tsv",
            caption="../report/contigs.rst",
            category="Calls",
            subcategory="{sample}",
            labels={"plot": "Every contig, as a table (TSV)"},
        ),
        viral=CALLS / "viral_contigs.fasta",
        regions=CALLS / "viral_regions.bed",
        record=CALLS / "calls.json",
    log:
        LOGS / "{sample}" / "call_contigs.log",
    benchmark:
        BENCHMARKS / "{sample}" / "call_contigs.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=lambda wildcards, input, attempt: attempt * (2000 + 20 * input.size_mb),
        runtime=lambda wildcards, attempt: attempt * 120,
    params:
        files=lambda wildcards: list(map(str, run.samples[wildcards.sample])),
        window=run.window,
        rule=asdict(calls.rule),
        policies=asdict(run.policies),
    script:
        "../scripts/call_contigs.py"


rule plot_calls:
    input:
        unpack(calls_of),
    output:
        **{
            plot: drawn(
                SAMPLE_PLOTS, plot, about, category="Calls", subcategory="{sample}"
            )
            for plot, about in PLOTS_OF_CALLS.items()
        },
        record=SAMPLE_PLOTS / "calls.json",
    log:
        LOGS / "{sample}" / "plot_calls.log",
    benchmark:
        BENCHMARKS / "{sample}" / "plot_calls.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 4000,
        runtime=lambda wildcards, attempt: attempt * 60,
    script:
        "../scripts/plot_calls.py"
