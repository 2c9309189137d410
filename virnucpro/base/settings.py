"""Every setting, stated once: what it means, what it may be, and what it is when nobody says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from virnucpro.base.errors import UserError
from virnucpro.base.setting import Setting
from virnucpro.base.text import short

NO_CLASSIFIER, DEMO_CLASSIFIER = "none", "classifier_demo"
"""No calls are wanted; and a random classifier, the same each time, whose calls mean nothing."""

LONGEST = 1022
"""Residues that fit into the 1024 tokens that ESM-2 was trained on, beside BOS and EOS."""

COUNT = 2**31 - 1
"""The largest number of things that one setting may ask for."""

VECTORS = ("mean", "bos", "max")
"""What pooling leaves one vector a protein; the names of their tensors begin with these words."""

SETTINGS = {
    setting.key: setting
    for setting in (
        Setting(
            "samples",
            "What to embed: a FASTA file, a folder of them, a pattern such as data/*.faa, several of these (a list or "
            "a comma-separated string), a mapping of sample name to file or files, or a table (.tsv or .csv with the "
            "columns sample and path, several rows a sample for several files). Without a mapping or table, a sample "
            "is named after its file, less the endings.",
            "examples/viral_proteins.faa",
        ),
        Setting(
            "input",
            "What the FASTA files hold. Nucleotide contigs are cut and translated in six frames as VirNucPro does.",
            "protein",
            words=("protein", "nucleotide"),
        ),
        Setting(
            "nucleotide.window",
            "Length of a window in base pairs; VirNucPro's classifiers were trained on 300 and 500.",
            500,
            numbers=(3, COUNT),
        ),
        Setting(
            "empty_records",
            "What to do about a record without residues (nothing, * or gaps alone): stop with an error, or skip it and "
            "list it in results/{sample}/skipped.tsv.",
            "error",
            words=("error", "skip"),
        ),
        Setting(
            "duplicate_ids",
            "What to do about an id (a header's first word) that an earlier record of the sample has: stop with an "
            "error, skip the repeat and list it, number repeats (id_2, id_3, ...), or take every record's whole header "
            "as its id.",
            "error",
            words=("error", "skip", "number", "header"),
        ),
        Setting(
            "empty_samples",
            "What to do about a file without records, or a sample of which none is left (a negative control): stop "
            "with an error, or skip it, which gives tables without rows.",
            "error",
            words=("error", "skip"),
        ),
        Setting(
            "suspicious",
            "What to do about records that are surely no proteins (DNA, alignments, messages of a server): refuse "
            "them, or accept them as proteins.",
            "refuse",
            words=("refuse", "accept"),
        ),
        Setting("results", "Folder that everything computed goes to.", "results", text=True),
        Setting(
            "resources",
            "Folder that converted model weights are kept in; may be shared by many runs.",
            "resources",
            text=True,
        ),
        Setting(
            "reuse",
            "Folders of earlier results, chunk files, tables: what they have of a sequence, from the same weights and "
            "settings, is copied and not computed again (docs/reuse.md).",
            (),
            text=True,
            several=True,
        ),
        Setting(
            "reuse_devices",
            "Whose numbers are taken: those of the same kinds of device as this run's (fp32 of any), or of any.",
            "same",
            words=("same", "any"),
        ),
        Setting(
            "model",
            "A released model's name, the path of a checkpoint or of its folder, a repository of huggingface.co "
            "(org/name or org/name@revision), or esm2_demo, which has random weights and means nothing biologically "
            "(docs/models.md).",
            "esm2_t36_3B_UR50D",
            text=True,
        ),
        Setting(
            "adapter",
            "A LoRA, rsLoRA or DoRA adapter that is merged into the model's weights: the folder that peft wrote, or a "
            "repository of huggingface.co (docs/models.md).",
            "none",
            words=("none",),
            text=True,
        ),
        Setting(
            "layers",
            "Layer or layers whose representation is wanted; 0 is the scaled embedding, last is the last one (36 for "
            "esm2_t36_3B_UR50D), negative numbers count from the end.",
            ("last",),
            words=("last",),
            numbers=(-1000, 1000),
            several=True,
        ),
        Setting(
            "pooling",
            "mean is one vector a protein (mean over its residues, without BOS and EOS), bos the representation of its "
            "first token (<cls>; in windows their mean), max the largest value over its residues channel by channel, "
            "per_residue one vector a residue; a list asks for several.",
            ("mean",),
            words=(*VECTORS, "per_residue"),
            several=True,
        ),
        Setting(
            "precision",
            "Number format of the model: fp32, fp16, bf16, or auto, which is fp16 on a GPU that computes it fast (what "
            "is not finite is computed again in a wider format) and fp32 on a CPU; or int8, faster and less exact "
            "(docs/accuracy.md).",
            "auto",
            words=("auto", "fp32", "fp16", "bf16", "int8"),
        ),
        Setting(
            "chunk_residues",
            "Residues in a chunk, the unit of work that is embedded by one job and lost when that job is. auto is some "
            "ten minutes, by the model and by whether jobs have a GPU: 20 million for esm2_t36_3B_UR50D on a GPU, "
            "21,000 on a CPU; 40 million at most, and less when whole residues are written.",
            "auto",
            words=("auto",),
            numbers=(1, 2**53),
        ),
        Setting(
            "long_proteins.policy",
            "window runs overlapping windows and averages each residue over the windows that cover it; truncate embeds "
            "the first residues alone; full runs the whole protein in one pass.",
            "window",
            words=("window", "truncate", "full"),
        ),
        Setting("long_proteins.longest", "Residues in a window, or left by truncate.", LONGEST, numbers=(1, COUNT)),
        Setting(
            "long_proteins.overlap",
            "Residues that neighbouring windows share at least.",
            LONGEST // 2,
            numbers=(0, COUNT),
        ),
        Setting(
            "merge.formats",
            "parquet (one row a protein), hdf5 (one dataset a protein, as UniProt publishes them), npy (NumPy arrays "
            "to map into memory), virnucpro_pt (the files that VirNucPro's own scripts read), chunk_files (no copy: "
            "where each protein stands in the chunk files).",
            ("parquet",),
            words=("parquet", "hdf5", "npy", "virnucpro_pt", "chunk_files"),
            several=True,
        ),
        Setting(
            "merge.dtype",
            "Number format of the tables; virnucpro_pt is always float32.",
            "float32",
            words=("float32", "float16"),
        ),
        Setting("merge.records_per_file", "Proteins in each file of virnucpro_pt.", 10_000, numbers=(1, COUNT)),
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
        Setting(
            "classify.ambiguous_over", "A window is ambiguous when both scores are over this.", 0.7, decimals=(0, 1)
        ),
        Setting(
            "metadata",
            "A table (.tsv or .csv) of what is known of the proteins, by whose columns maps are coloured: its column "
            "id names the protein, and sample the sample, where ids are not of one sample alone; or none.",
            "none",
            words=("none",),
            text=True,
        ),
        Setting(
            "neighbours",
            "How many nearest neighbours of each protein results/{sample}/neighbours.tsv lists; 0 for no such table.",
            0,
            numbers=(0, 1000),
        ),
        Setting(
            "sample_plots",
            "Whether plots of each sample are drawn: auto where there are 100 samples or fewer.",
            "auto",
            words=("auto", "all", "none"),
        ),
        Setting(
            "gpus_per_job",
            "GPUs that one embed job asks for; it uses them all. One is best unless jobs are few.",
            1,
            numbers=(0, 10_000),
        ),
        Setting(
            "require_gpu",
            "true: where an embed job finds no GPU that it can use, the run ends with a sentence and not on a CPU.",
            False,
            truth=True,
        ),
        Setting(
            "prefer_features",
            "Node features of a Slurm cluster to prefer for GPU jobs, besides the names that are known to mean Ampere "
            "or newer (ampere, hopper, a100, h100, sm80, ...); one that the cluster does not have is left out.",
            (),
            text=True,
            several=True,
        ),
    )
}
"""Every key of config.yaml, in its order."""

KERNELS = Setting(
    "kernels",
    "auto takes fused kernels on a CUDA GPU in half precision, where they run; eager takes torch's own operators.",
    "auto",
    words=("auto", "eager"),
)
TOKEN_BUDGET = Setting("token_budget", "Tokens of a batch.", None, numbers=(1, 2**53))


def default(key: str) -> Any:
    """What the setting is when nobody says."""
    return SETTINGS[key].default


def checked(key: str, value: Any) -> Any:
    """What :meth:`Setting.check` makes of the value."""
    return SETTINGS[key].check(value)


def check_fields(value: Any, group: str = "") -> None:
    """Put each field that is a setting into its own type."""
    for field in fields(value):
        if setting := SETTINGS.get(group + field.name):
            object.__setattr__(value, field.name, setting.check(getattr(value, field.name)))


@dataclass(frozen=True)
class LongProteins:
    """What is done to proteins of more than ``longest`` residues.

    Raises:
        UserError: a value is not allowed, or windows would overlap by their whole length.
    """

    policy: str = default("long_proteins.policy")
    longest: int = default("long_proteins.longest")
    overlap: int = default("long_proteins.overlap")

    def __post_init__(self) -> None:
        check_fields(self, "long_proteins.")
        if self.policy == "window" and self.overlap >= self.longest:
            raise UserError(
                f"setting 'long_proteins.overlap' ({self.overlap}) must be less than 'long_proteins.longest' "
                f"({self.longest})"
            )

    @classmethod
    def of(cls, given: LongProteins | Mapping[str, int | str] | str) -> LongProteins:
        """From a mapping of its fields, or a policy alone."""
        if isinstance(given, LongProteins):
            return given
        if isinstance(given, str):
            return cls(given)
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in given if name not in known]:
            raise UserError(f"setting {short(unknown[0])} in long_proteins is not known: known are {', '.join(known)}")
        values: dict[str, Any] = dict(given)
        return cls(**values)


@dataclass(frozen=True)
class InputPolicies:
    """What is done about records and samples that can't simply be embedded; ``SETTINGS`` says what each may be.

    Raises:
        UserError: a value is not one of those allowed.
    """

    empty_records: str = default("empty_records")
    duplicate_ids: str = default("duplicate_ids")
    empty_samples: str = default("empty_samples")
    suspicious: str = default("suspicious")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class EmbeddingSettings:
    """Settings of one embedding job; ``SETTINGS`` says what each may be.

    Attributes:
        layers: numbers, negative ones counted from the last as -1, or "last" (see :func:`resolve_layers`).
        token_budget: tokens of a batch; None takes it from the device's free memory.
        residue_dtype: what residues' vectors are kept in; ``merge.dtype``, for it is what tables will hold.

    Raises:
        UserError: a value is not one of those allowed.
    """

    layers: tuple[int | str, ...] = default("layers")
    pooling: tuple[str, ...] = default("pooling")
    precision: str = default("precision")
    long_proteins: LongProteins = LongProteins()
    token_budget: int | None = TOKEN_BUDGET.default
    kernels: str = KERNELS.default
    residue_dtype: str = default("merge.dtype")

    def __post_init__(self) -> None:
        check_fields(self)
        checked("merge.dtype", self.residue_dtype)
        object.__setattr__(self, "long_proteins", LongProteins.of(self.long_proteins))
        KERNELS.check(self.kernels)
        if self.token_budget is not None:
            TOKEN_BUDGET.check(self.token_budget)

    @property
    def vectors(self) -> int:
        """How many vectors of a protein are kept of each layer, those of residues apart."""
        return len({*VECTORS} & {*self.pooling})


@dataclass(frozen=True)
class TableSettings:
    """The tables that are written; ``SETTINGS`` says what each may be.

    Raises:
        UserError: a value is not one of those allowed.
    """

    formats: tuple[str, ...] = default("merge.formats")
    dtype: str = default("merge.dtype")
    records_per_file: int = default("merge.records_per_file")

    def __post_init__(self) -> None:
        check_fields(self, "merge.")

    def check(self, layers: Sequence[int | str], pooling: Sequence[str]) -> None:
        """Refuse, before anything is computed, a format that cannot hold what is computed.

        Raises:
            UserError: virnucpro_pt with anything but one mean vector a protein.
        """
        if "virnucpro_pt" in self.formats and ("mean" not in pooling or len(layers) != 1):
            raise UserError(
                "merge format virnucpro_pt holds one mean vector a protein: set pooling to mean and give one layer"
            )
