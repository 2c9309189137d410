# Needs: the indices of samples and all chunk files that have their sequences.
# Makes: of each sample one verified table a format, with a row for every record of the input, in its order.


MERGE = dict(
    chunks=str(CHUNKS),
    tensors=str(state.pool.tensors),
    tables=asdict(run.tables),
    settings=asdict(run.embedding),
)


rule merge_embeddings:
    input:
        unpack(tables_of),
    output:
        **{name: [table(name)] for name in run.tables.formats},
        report=[SAMPLE / "embeddings.json"],
    log:
        LOGS / "{sample}" / "merge_embeddings.log",
    benchmark:
        BENCHMARKS / "{sample}" / "merge_embeddings.tsv"
    wildcard_constraints:
        sample=ALONE,
    conda:
        "../../envs/data.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 4000,
        runtime=lambda wildcards, attempt: attempt * 240,
    params:
        **MERGE,
    script:
        "../scripts/merge_embeddings.py"


# A job's start costs seconds and a small sample's merge milliseconds, so one job does many.
for number, names in enumerate(TOGETHER):

    rule:
        name:
            f"merge_embeddings_{number}"
        input:
            unpack(tables_of_several(names)),
        output:
            **{name: tables_of_format(name, names) for name in run.tables.formats},
            report=expand(SAMPLE / "embeddings.json", sample=names),
        log:
            LOGS / f"merge_embeddings_{number}.log",
        benchmark:
            BENCHMARKS / f"merge_embeddings_{number}.tsv"
        conda:
            "../../envs/data.yaml"
        threads: 4
        resources:
            mem_mb=lambda wildcards, attempt: attempt * 4000,
            runtime=lambda wildcards, attempt: attempt * 240,
        params:
            **MERGE,
        script:
            "../scripts/merge_embeddings.py"
