# Needs: the reports of all merged samples, and their maps for the front page; of each sample its index and chunk files.
# Makes: the run's summary as tables, plots, a page, and the text that closes the run.


report: "../report/workflow.rst"


rule summarise:
    input:
        unpack(reports_of_all),
    output:
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
        throughput=[
            report(
                RUN_PLOTS / "throughput.svg",
                caption="../report/throughput.rst",
                category="How it ran",
                labels={"plot": "Throughput by chunk and device"},
            ),
            RUN_PLOTS / "throughput.png",
        ],
        packing=[
            report(
                RUN_PLOTS / "packing.svg",
                caption="../report/packing.rst",
                category="How it ran",
                labels={"plot": "Padding avoided"},
            ),
            RUN_PLOTS / "packing.png",
        ],
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
        record=SAMPLE_PLOTS / "plots.json",
        lengths=[
            report(
                SAMPLE_PLOTS / "lengths.svg",
                caption="../report/lengths.rst",
                category="Samples",
                subcategory="{sample}",
                labels={"plot": "Protein lengths"},
            ),
            SAMPLE_PLOTS / "lengths.png",
        ],
        map=[
            report(
                SAMPLE_PLOTS / "map.svg",
                caption="../report/map.rst",
                category="Samples",
                subcategory="{sample}",
                labels={"plot": "Map of the embeddings"},
            ),
            SAMPLE_PLOTS / "map.png",
        ],
        page=report(
            SAMPLE_PLOTS / "map.html",
            caption="../report/interactive_map.rst",
            category="Samples",
            subcategory="{sample}",
            labels={"plot": "Map to search and point at"},
        ),
    log:
        LOGS / "{sample}" / "plot_sample.log",
    benchmark:
        BENCHMARKS / "{sample}" / "plot_sample.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 4000,
        runtime=lambda wildcards, attempt: attempt * 60,
    params:
        metadata=str(run.metadata or ""),
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
    script:
        "../scripts/find_neighbours.py"
