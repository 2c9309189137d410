# Needs: the reports of all merged samples.
# Makes: the run's summary, as a table and as the text that closes the run.


rule summarise:
    input:
        expand(SAMPLE / "embeddings.json", sample=run.samples),
    output:
        table=SUMMARY,
        text=SUMMARY.with_suffix(".txt"),
    log:
        LOGS / "summarise.log",
    benchmark:
        BENCHMARKS / "summarise.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    script:
        "../scripts/summarise.py"
