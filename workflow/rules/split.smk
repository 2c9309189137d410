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
        chunk_residues=run.chunk_size.residues,
        multiple_of=run.chunk_size.multiple_of,
        embed_dim=planning_architecture(run.model).embed_dim,
        long_proteins=asdict(run.embedding.long_proteins),
        policies=asdict(run.split_policies),
    script:
        "../scripts/split_proteins.py"
