# Needs: a model's checkpoint (a path, torch hub's cache, or the network).
# Makes: its weights as safetensors with a manifest; and a report on the GPUs that jobs will meet.


rule prepare_weights:
    input:
        unpack(checkpoint_of),
    output:
        WEIGHTS,
    log:
        LOGS / "prepare_weights.log",
    benchmark:
        BENCHMARKS / "prepare_weights.tsv"
    conda:
        "../../envs/embed.yaml"
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        model=run.model.given,
        digests=state.weights.digests,
    script:
        "../scripts/prepare_weights.py"


rule detect_gpu:
    output:
        GPU_REPORT,
    log:
        LOGS / "detect_gpu.log",
    benchmark:
        BENCHMARKS / "detect_gpu.tsv"
    conda:
        "../../envs/embed.yaml"
    resources:
        **GPU_JOB,
        gpu=run.gpus_per_job,
        mem_mb=4000,
        runtime=15,
    params:
        require_gpu=run.require_gpu,
    script:
        "../scripts/detect_gpu.py"
