# Needs: a chunk of proteins, the weights.
# Makes: one tensor file, on the GPUs that the job was given or else on the CPU.
from virnucpro.cluster.sizing import Chunk, embed_memory_mb, embed_minutes
from virnucpro.config import planning_architecture


def embed_memory(wildcards, input, attempt):
    return embed_memory_mb(
        planning_architecture(run.model),
        Chunk.read(Path(input.chunk_manifest)),
        layers=len(run.layers),
        mean="mean" in run.pooling,
        per_residue="per_residue" in run.pooling,
        gpus=run.gpus_per_job,
        attempt=attempt,
    )


def embed_time(wildcards, input, threads, attempt):
    return embed_minutes(
        planning_architecture(run.model),
        Chunk.read(Path(input.chunk_manifest)),
        gpus=run.gpus_per_job,
        threads=threads,
        attempt=attempt,
    )


def gpu_report(wildcards):
    """The GPU report: ancient for a finished chunk, which no new report makes stale.

    Not for one that is missing: when a checkpoint ends while detect_gpu runs and its file is already there, Snakemake
    (seen with 9.27) forgets all jobs whose only tie to a running job is ancient, and ends without them.
    """
    chunk_file = str(CHUNK_FILE).format(sample=wildcards.sample, chunk=wildcards.chunk)
    return ancient(GPU_REPORT) if Path(chunk_file).exists() else GPU_REPORT


rule embed_esm2:
    input:
        # The manifest is small, so Snakemake compares its content: splitting again or preparing the same weights again
        # makes no finished chunk stale. The large files that the manifests vouch for are checked by the job.
        chunk_manifest=CHUNKS / "{chunk}.json",
        proteins=ancient(CHUNKS / "{chunk}.fasta"),
        weights_manifest=WEIGHTS_MANIFEST,
        weights=ancient(WEIGHTS),
        gpu_report=gpu_report,
    output:
        CHUNK_FILE,
    log:
        LOGS / "{sample}" / "embed_esm2" / "{chunk}.log",
    benchmark:
        BENCHMARKS / "{sample}" / "embed_esm2" / "{chunk}.tsv"
    conda:
        "../../envs/embed.yaml"
    threads: 4
    resources:
        **GPU_JOB,
        gpu=run.gpus_per_job,
        mem_mb=embed_memory,
        runtime=embed_time,
    params:
        layers=run.layers,
        pooling=run.pooling,
        precision=run.precision,
        policy=run.long_policy,
        longest=run.longest,
        overlap=run.overlap,
    script:
        "../scripts/embed_esm2.py"
