# What the plots of samples are: their files in both formats, and their places in the report.

in_report = report  # which Snakemake takes for a keyword where a line begins with it
ABOUT = dict(
    lengths="Protein lengths",
    map="Map of the embeddings",
)
PLOTS = tuple(ABOUT)
PLOTTED = dict(
    chunks=str(CHUNKS),
    tensors=str(state.pool.tensors),
    metadata=str(run.metadata or ""),
)


def plots_of_format(plot, samples):
    """One plot of several samples: of each its SVG and PNG, in turn."""
    return [
        (
            in_report(
                str(SAMPLE_PLOTS / f"{plot}.{kind}").format(sample=sample),
                caption=f"../report/{plot}.rst",
                category="Samples",
                subcategory=sample,
                labels={"plot": ABOUT[plot]},
            )
            if kind == "svg"
            else str(SAMPLE_PLOTS / f"{plot}.{kind}").format(sample=sample)
        )
        for sample in samples
        for kind in ("svg", "png")
    ]


def map_page(folder, sample):
    """The interactive map, with its place in the report."""
    return in_report(
        f"{folder}/map.html",
        caption="../report/interactive_map.rst",
        category="Samples",
        subcategory=sample,
        labels={"plot": "Map to search and point at"},
    )


def plot_of_a_sample(plot):
    """One plot in both formats, with its place in the report."""
    return [
        in_report(
            SAMPLE_PLOTS / f"{plot}.svg",
            caption=f"../report/{plot}.rst",
            category="Samples",
            subcategory="{sample}",
            labels={"plot": ABOUT[plot]},
        ),
        SAMPLE_PLOTS / f"{plot}.png",
    ]
