# Needs: a chunk of proteins, the weights.
# Makes: one tensor file, on the GPUs that the job was given or else on the CPU.
rule embed_esm2:
    input:
        unpack(chunk_of),
    output:
        CHUNK_FILE,
    log:
        LOGS / "embed_esm2" / "{chunk}.log",
    benchmark:
        BENCHMARKS / "embed_esm2" / "{chunk}.tsv"
    conda:
        "../../envs/embed.yaml"
    threads: embed_threads(CHUNKS)
    resources:
        **GPU_JOB,
        gpu=run.gpus_per_job,
        mem_mb=embed_memory,
        runtime=embed_time,
    params:
        settings=asdict(run.embedding),
        require_gpu=run.require_gpu,
    script:
        "../scripts/embed_esm2.py"
