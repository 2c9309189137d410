# Needs: the index of a sample and all of its chunk files.
# Makes: one verified table a format, with a row for every record of the input, in its order.
rule merge_embeddings:
    input:
        unpack(tables_of),
    output:
        **{name: table(name) for name in run.tables.formats},
        report=SAMPLE / "embeddings.json",
    log:
        LOGS / "{sample}" / "merge_embeddings.log",
    benchmark:
        BENCHMARKS / "{sample}" / "merge_embeddings.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 4000,
        runtime=lambda wildcards, attempt: attempt * 240,
    params:
        chunks=str(CHUNKS),
        tables=asdict(run.tables),
        settings=asdict(run.embedding),
    script:
        "../scripts/merge_embeddings.py"
