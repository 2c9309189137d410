# Needs: the contigs of a sample (only with input: nucleotide).
# Makes: the stop-free frames of their windows as proteins, and the nucleotides of each beside, as VirNucPro does.


rule translate_contigs:
    input:
        unpack(contigs_of),
    output:
        proteins=TRANSLATED,
        nucleotides=SAMPLE / "translated.fna",
        skipped=SAMPLE / "skipped_contigs.tsv",
        record=SAMPLE / "translated.json",
    log:
        LOGS / "{sample}" / "translate_contigs.log",
    benchmark:
        BENCHMARKS / "{sample}" / "translate_contigs.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 2000,
        runtime=lambda wildcards, attempt: attempt * 120,
    params:
        files=lambda wildcards: list(map(str, run.samples[wildcards.sample])),
        window=run.window,
        policies=asdict(run.policies),
    script:
        "../scripts/translate_contigs.py"
