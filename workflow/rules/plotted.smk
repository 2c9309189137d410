# What plots are: their files in both formats, and their places in the report.

in_report = report  # which Snakemake takes for a keyword where a line begins with it
PLOTTED = dict(
    pool=lambda wildcards: str(state.pool.folder),
    metadata=str(run.metadata or ""),
)


def drawn(folder, plot, about, **place):
    """One plot in both formats, with its place in the report."""
    labels = {"plot": about}
    caption = f"../report/{plot}.rst"
    return [
        in_report(f"{folder}/{plot}.svg", caption=caption, labels=labels, **place),
        f"{folder}/{plot}.png",
    ]


def plots_of_each(*samples):
    """The plots of samples by name: of each sample its SVG and PNG, in turn."""
    return {
        plot: [
            file
            for sample in samples
            for file in drawn(
                folder_of_plots(sample),
                plot,
                about,
                category="Samples",
                subcategory=sample,
            )
        ]
        for plot, about in PLOTS_OF_SAMPLE.items()
    }


def map_page(sample):
    """The interactive map, with its place in the report."""
    return in_report(
        f"{folder_of_plots(sample)}/map.html",
        caption="../report/interactive_map.rst",
        category="Samples",
        subcategory=sample,
        labels={"plot": "Map to search and point at"},
    )


def folder_of_plots(sample):
    return str(SAMPLE_PLOTS).replace("{sample}", sample)
