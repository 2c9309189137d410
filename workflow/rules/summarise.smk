# Needs: the reports of all merged samples, and their maps for the front page; of each sample its index and chunk files.
# Makes: the run's summary as tables, plots, a page, and the text that closes the run.


report: "../report/workflow.rst"


rule summarise:
    input:
        unpack(reports_of_all),
    output:
        **{
            plot: drawn(RUN_PLOTS, plot, about, category="How it ran")
            for plot, about in PLOTS_OF_RUN.items()
        },
        table=report(
            SUMMARY,
            caption="../report/table.rst",
            category="Summary",
            labels={"what": "Samples, to download (TSV)"},
        ),
        chunks=report(
            run.results / "chunks.tsv",
            caption="../report/chunks.rst",
            category="Summary",
            labels={"what": "Chunks, to download (TSV)"},
        ),
        page=report(
            SUMMARY.with_suffix(".html"),
            caption="../report/summary.rst",
            category="Summary",
            labels={"what": "The run at a glance"},
        ),
        text=SUMMARY.with_suffix(".txt"),
        record=SUMMARY_RECORD,
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


rule plot_sample:
    input:
        unpack(plots_of),
    output:
        **plots_of_each("{sample}"),
        page=[map_page("{sample}")],
        record=[SAMPLE_PLOTS / "plots.json"],
    log:
        LOGS / "{sample}" / "plot_sample.log",
    benchmark:
        BENCHMARKS / "{sample}" / "plot_sample.tsv"
    wildcard_constraints:
        sample=ALONE,
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 4000,
        runtime=lambda wildcards, attempt: attempt * 60,
    params:
        **PLOTTED,
    script:
        "../scripts/plot_sample.py"


for number, names in enumerate(TOGETHER):

    rule:
        name:
            f"plot_sample_{number}"
        input:
            unpack(plots_of_several(names)),
        output:
            **plots_of_each(*names),
            record=expand(SAMPLE_PLOTS / "plots.json", sample=names),
            page=[map_page(name) for name in names],
        log:
            LOGS / f"plot_sample_{number}.log",
        benchmark:
            BENCHMARKS / f"plot_sample_{number}.tsv"
        conda:
            "../../envs/report.yaml"
        resources:
            mem_mb=lambda wildcards, attempt: attempt * 4000,
            runtime=lambda wildcards, attempt: attempt * 240,
        params:
            **PLOTTED,
        script:
            "../scripts/plot_sample.py"


# Needs: the same of each sample. Makes: a table of each protein's nearest neighbours, where neighbours is set.
rule find_neighbours:
    input:
        unpack(neighbours_of),
    output:
        table=SAMPLE / "neighbours.tsv",
        record=SAMPLE / "neighbours.json",
    log:
        LOGS / "{sample}" / "find_neighbours.log",
    benchmark:
        BENCHMARKS / "{sample}" / "find_neighbours.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 16000,
        runtime=lambda wildcards, attempt: attempt * 240,
    params:
        neighbours=run.neighbours,
        pool=lambda wildcards: str(state.pool.folder),
    script:
        "../scripts/find_neighbours.py"


# Needs: what all samples were merged from. Makes: one map of them, where there are several.
rule map_samples:
    input:
        unpack(map_of_all),
    output:
        page=report(
            MAP,
            caption="../report/map_of_all.rst",
            category="Summary",
            labels={"what": "All samples on one map"},
        ),
        record=MAP.with_suffix(".json"),
    log:
        LOGS / "map_samples.log",
    benchmark:
        BENCHMARKS / "map_samples.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 4000,
        runtime=lambda wildcards, attempt: attempt * 60,
    params:
        **PLOTTED,
    script:
        "../scripts/map_samples.py"
