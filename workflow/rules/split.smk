# Needs: the protein FASTA files of a sample.
# Makes: its index (a row for every record), chunks of its unique proteins, of equal work, and a table of what was skipped.


checkpoint split_proteins:
    input:
        unpack(proteins_of),
    output:
        index=SAMPLE / "proteins.parquet",
        chunks=directory(CHUNKS),
        skipped=SAMPLE / "skipped.tsv",
    log:
        LOGS / "{sample}" / "split_proteins.log",
    benchmark:
        BENCHMARKS / "{sample}" / "split_proteins.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=lambda wildcards, input, attempt: attempt * (2000 + input.size_mb),
        runtime=lambda wildcards, attempt: attempt * 120,
    params:
        files=lambda wildcards: list(map(str, run.samples[wildcards.sample])),
        chunk_residues=run.chunk_residues,
        multiple_of=run.chunks_multiple_of,
        embed_dim=run.embed_dim,
        policy=run.long_policy,
        longest=run.longest,
        overlap=run.overlap,
        policies=asdict(run.split_policies),
    script:
        "../scripts/split_proteins.py"
