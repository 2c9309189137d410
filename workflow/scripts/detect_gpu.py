"""Report the GPUs of this machine and whether FlashAttention-2 runs on them."""

from pathlib import Path

from virnucpro.jobs import job

with job("detect_gpu", snakemake.log[0]) as log:
    from virnucpro.gpu_report import detect_gpu

    detect_gpu(Path(snakemake.output[0]), log, require_gpu=snakemake.params.require_gpu)
