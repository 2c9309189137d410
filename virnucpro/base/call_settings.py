"""The settings of calls: what calls contigs, and by which rule."""

from __future__ import annotations

from virnucpro.base.setting import Setting

NO_CLASSIFIER, DEMO_CLASSIFIER = "none", "classifier_demo"
"""No calls are wanted; and a random classifier, the same each time, whose calls mean nothing."""

CALL_SETTINGS = (
    Setting(
        "classify.classifier",
        "What calls contigs viral or not (docs/calls.md): none, the path of VirNucPro's 500_model.pth or "
        "300_model.pth, or classifier_demo, which is random and means nothing biologically.",
        NO_CLASSIFIER,
        words=(NO_CLASSIFIER, DEMO_CLASSIFIER),
        text=True,
    ),
    Setting(
        "classify.nucleotide_model",
        "What embeds the frames' nucleotides: dnabert_s, the path of its folder or file, its repository on "
        "huggingface.co, or dnabert_s_demo, which has random weights.",
        "dnabert_s",
        text=True,
    ),
    Setting(
        "classify.chunk_bases",
        "Bases in a chunk of the frames' nucleotides. auto is 200 million on a GPU, and some ten minutes on a CPU.",
        "auto",
        words=("auto",),
        numbers=(1, 2**53),
    ),
    Setting("classify.viral_over", "A contig's score over which it is called viral.", 0.3, decimals=(-1, 1)),
    Setting(
        "classify.non_viral_under",
        "A contig's score under which it is called non-viral; between the two it is ambiguous.",
        -0.3,
        decimals=(-1, 1),
    ),
    Setting(
        "classify.sure_over",
        "A window is surely of a class when its score is over this, and the other's under sure_under.",
        0.8,
        decimals=(0, 1),
    ),
    Setting("classify.sure_under", "See sure_over.", 0.3, decimals=(0, 1)),
    Setting("classify.ambiguous_over", "A window is ambiguous when both scores are over this.", 0.7, decimals=(0, 1)),
)
