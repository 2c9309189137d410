# Needs: the protein FASTA files of all samples, and the chunk files that are there already.
# Makes: chunks of equal work of the proteins that are not embedded yet; of each sample its index (a row for every record)
# and a table of what was skipped. Those of samples that share jobs are no outputs, because Snakemake's own work grows with
# inputs times outputs: the record in the folder of chunks proves them.


checkpoint split_proteins:
    input:
        unpack(proteins_of),
    output:
        chunks=directory(CHUNKS),
        index=expand(SAMPLE / "proteins.parquet", sample=WITH_OWN_JOBS),
        skipped=expand(SAMPLE / "skipped.tsv", sample=WITH_OWN_JOBS),
    log:
        LOGS / "split_proteins.log",
    benchmark:
        BENCHMARKS / "split_proteins.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=lambda wildcards, input, attempt: attempt * (2000 + input.size_mb),
        runtime=lambda wildcards, attempt: attempt * 120,
    params:
        samples={name: list(map(str, files)) for name, files in run.samples.items()},
        results=lambda wildcards: str(run.results),
        split=asdict(state.pool.split_settings),
        embedding=asdict(run.embedding),
        weights=asdict(state.weights),
        tensors=str(state.pool.tensors),
        reuse=REUSE,
    script:
        "../scripts/split_proteins.py"
