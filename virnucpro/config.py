"""The configuration of a run: what was given, checked, with a default for everything else.

``python -m virnucpro.config`` prints its JSON schema (workflow/schemas/config.schema.yaml).
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from virnucpro.base.errors import UserError
from virnucpro.base.paths import matching, own_folder, without_patterns
from virnucpro.base.setting import Setting
from virnucpro.base.settings import (
    DEMO_CLASSIFIER,
    NO_CLASSIFIER,
    SETTINGS,
    EmbeddingSettings,
    InputPolicies,
    LongProteins,
    TableSettings,
    default,
)
from virnucpro.base.text import brief, short
from virnucpro.calling.state import CallRule, check_window
from virnucpro.chunking.size import BASES, ChunkSize, chunk_sizes
from virnucpro.config_files import Source
from virnucpro.models.mosaic_bert.sizes import MosaicSizes
from virnucpro.models.reference import ModelRef, planning_architecture, planning_parameters
from virnucpro.samples import OURS, find_samples

GROUPS = {
    "nucleotide": "How contigs are cut before translation (only read with input nucleotide).",
    "long_proteins": "What happens to proteins longer than the model was trained on.",
    "classify": "Calls of contigs, viral or not (docs/calls.md); with input nucleotide alone.",
    "merge": "The tables that are written for each sample.",
}
"""Mappings in config.yaml, and what their settings are about."""

_FILES = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
    ]
}

FORMS = {
    "samples": {
        "anyOf": [
            *_FILES["anyOf"],
            {"type": "object", "minProperties": 1, "additionalProperties": _FILES},
        ]
    }
}
"""The JSON schema of settings that words, numbers and text do not describe."""

DEFAULT = Source("default", {})

MOST_DRAWN = 100
"""Samples that are drawn one by one when nobody says so: their plots take longer than all else of small samples."""


@dataclass(frozen=True)
class CallsConfig:
    """What calls contigs.

    Attributes:
        classifier: the path of VirNucPro's file, or None for the random one.
        model: what embeds the frames' nucleotides, as ``embedding`` says.
        chunk_sizes: of nucleotides.
    """

    classifier: Path | None
    model: ModelRef
    embedding: EmbeddingSettings
    chunk_sizes: dict[str, ChunkSize]
    rule: CallRule


@dataclass(frozen=True)
class RunConfig:
    """A validated configuration with every default filled in."""

    samples: dict[str, tuple[Path, ...]]
    input: str
    policies: InputPolicies
    window: int
    results: Path
    resources: Path
    model: ModelRef
    embedding: EmbeddingSettings
    tables: TableSettings
    chunk_sizes: dict[str, ChunkSize]
    device: str
    gpus_per_job: int
    require_gpu: bool
    prefer_features: tuple[str, ...]
    reuse: tuple[Path, ...] = ()
    reuse_devices: str = "same"
    sample_plots: str = "auto"
    calls: CallsConfig | None = None
    metadata: Path | None = None
    neighbours: int = 0

    @property
    def chunk_size(self) -> ChunkSize:
        """The size of chunks for the devices that will embed them."""
        return self.chunk_sizes[self.device]

    @property
    def draws_samples(self) -> bool:
        """Whether there are plots of each sample."""
        return self.sample_plots == "all" or (self.sample_plots == "auto" and len(self.samples) <= MOST_DRAWN)

    @property
    def split_policies(self) -> InputPolicies:
        """What is done about a sample's proteins; translated frames of repeats may look like anything."""
        return replace(self.policies, suspicious="accept") if self.input == "nucleotide" else self.policies


def load_config(*sources: Source, device: str = "gpu") -> RunConfig:
    """Check what the sources give, fill in the defaults, and find the sample files.

    Args:
        sources: where settings are given; a later one wins, setting by setting (``samples`` as a whole).
        device: "gpu" or "cpu": what jobs will find; those that ask for no GPU run on a CPU.

    Raises:
        UserError: an unknown key, a value that is not allowed, settings that exclude each other, a missing file or two
            samples of one name.
    """
    chosen = {key: setting.default for key, setting in SETTINGS.items()}
    origin = dict.fromkeys(SETTINGS, DEFAULT)
    for source in sources:
        given = _checked(source)
        chosen |= given
        origin |= dict.fromkeys(given, source)
    with _named(origin["model"]):
        model = ModelRef.of(chosen["model"], folder=origin["model"].folder)
    with _named(origin["adapter"]):
        model = model.with_adapter(chosen["adapter"], origin["adapter"].folder)
    for file in model.files:
        without_patterns(file, "setting 'model' or 'adapter'")
    if origin["samples"] is DEFAULT and not Path(chosen["samples"]).exists():
        raise UserError("no sample is given: set samples in config.yaml, or add --config samples=my.faa")
    with _named(origin["samples"]):
        samples = find_samples(chosen["samples"], origin["samples"].folder)
    long_proteins = LongProteins(**_group(chosen, "long_proteins"))
    tables = TableSettings(**_group(chosen, "merge"))
    kept = _fields(chosen, "layers", "pooling", "precision")
    embedding = EmbeddingSettings(**kept, long_proteins=long_proteins, residue_dtype=tables.dtype)
    layers = model.resolve(embedding.layers)
    tables.check(layers, embedding.pooling)
    results = _folder("results", chosen, origin)
    if chosen["require_gpu"] and not chosen["gpus_per_job"]:
        raise UserError("setting 'require_gpu' is true and setting 'gpus_per_job' is 0: change one of them")
    return RunConfig(
        samples=samples,
        policies=InputPolicies(**_fields(chosen, *(field.name for field in fields(InputPolicies)))),
        results=results,
        resources=_apart(_folder("resources", chosen, origin), results, samples),
        model=model,
        embedding=embedding,
        tables=tables,
        chunk_sizes=chunk_sizes(
            chosen["chunk_residues"],
            parameters=planning_parameters(model),
            embed_dim=planning_architecture(model).embed_dim,
            layers=len(layers),
            pooling=embedding.pooling,
        ),
        reuse=_reused(chosen["reuse"], origin["reuse"]),
        calls=_calls(chosen, origin, layers, embedding),
        device=device if chosen["gpus_per_job"] else "cpu",
        metadata=None
        if chosen["metadata"] == default("metadata")
        else _file("metadata", chosen, origin, "a table (.tsv, .csv), or none"),
        **_fields(chosen, "input", "gpus_per_job", "require_gpu", "prefer_features", "neighbours"),
        **_fields(chosen, "reuse_devices", "sample_plots"),
        **_group(chosen, "nucleotide"),
    )


def _reused(given: Sequence[str], origin: Source) -> tuple[Path, ...]:
    """The folders and files of earlier results; those that a split has looked at may be gone since."""
    what = "setting 'reuse'"
    with _named(origin):
        found = [path for text in given for path in matching(text, what, origin.folder, may_be_gone=True)]
    return tuple(dict.fromkeys(found))


def _calls(
    chosen: Mapping[str, Any],
    origin: Mapping[str, Source],
    layers: Sequence[int | str],
    embedding: EmbeddingSettings,
) -> CallsConfig | None:
    """What calls contigs, if anything is to; ``layers`` and ``embedding`` are the proteins'."""
    given = chosen["classify.classifier"]
    if given == NO_CLASSIFIER:
        return None
    with _named(origin["classify.classifier"]):
        if chosen["input"] != "nucleotide":
            raise UserError("contigs are classified, and setting 'input' is protein: set it to nucleotide")
        if "mean" not in embedding.pooling or len(layers) != 1:
            raise UserError("the classifier takes one mean vector a protein: set pooling to mean and give one layer")
    path = None
    if given != DEMO_CLASSIFIER:
        path = _file("classify.classifier", chosen, origin, "VirNucPro's 500_model.pth or 300_model.pth")
        with _named(origin["classify.classifier"]):
            check_window(path, chosen["nucleotide.window"])
    with _named(origin["classify.nucleotide_model"]):
        model = ModelRef.of(chosen["classify.nucleotide_model"], folder=origin["classify.nucleotide_model"].folder)
        sizes = planning_architecture(model, "dnabert_s")
        if not isinstance(sizes, MosaicSizes):
            raise UserError(f"setting 'classify.nucleotide_model': {model} embeds proteins: give dnabert_s")
        for file in model.files:
            without_patterns(file, "setting 'classify.nucleotide_model'")
    # int8 is ESM-2's alone; ALiBi needs no windows, and VirNucPro runs every frame whole.
    precision = "auto" if embedding.precision == "int8" else embedding.precision
    whole = EmbeddingSettings(precision=precision, long_proteins=LongProteins("full"))
    return CallsConfig(
        path,
        model,
        whole,
        chunk_sizes(
            chosen["classify.chunk_bases"],
            parameters=planning_parameters(model),
            embed_dim=sizes.embed_dim,
            layers=1,
            pooling=whole.pooling,
            letters=BASES,
        ),
        CallRule(**{field.name: chosen[f"classify.{field.name}"] for field in fields(CallRule)}),
    )


def _file(key: str, chosen: Mapping[str, Any], origin: Mapping[str, Source], advice: str) -> Path:
    """The one file that a setting names."""
    what, given = f"setting {key!r}", chosen[key]
    with _named(origin[key]):
        path = without_patterns(matching(given, what, origin[key].folder)[0], what)
        if not path.is_file():
            raise UserError(f"{what}: {brief(given)} is no file: give {advice}")
        return path


def merged(sources: Sequence[Source]) -> dict[str, Any]:
    """The settings as they were given, each from the last source that gives it; groups are mappings again."""
    found: dict[str, Any] = {}
    for source in sources:
        for key, value in source.settings.items():
            found[key] = {**found.get(key, {}), **value} if key in GROUPS else value
    return found


def json_schema() -> dict[str, Any]:
    """The JSON schema of config.yaml, for editors and the workflow catalogue."""
    properties: dict[str, Any] = {}
    for key, setting in SETTINGS.items():
        group, _, name = key.rpartition(".")
        if group and group not in properties:
            properties[group] = {
                "description": GROUPS[group],
                "type": "object",
                "additionalProperties": False,
                "properties": {},
                "default": {},
            }
        (properties[group]["properties"] if group else properties)[name] = _schema(setting)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "virnucpro configuration",
        "description": "Every key of config.yaml, with what it means and what it is when left out.",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _schema(setting: Setting) -> dict[str, Any]:
    default = setting.default
    if setting.several:
        default = default[0] if len(default) == 1 else list(default)
    return {"description": setting.about, **(FORMS.get(setting.key) or _shape(setting)), "default": default}


def _shape(setting: Setting) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = []
    if setting.words:
        kinds.append({"enum": list(setting.words)})
    if setting.numbers:
        kinds.append({"type": "integer", "minimum": setting.numbers[0], "maximum": setting.numbers[1]})
    if setting.decimals:
        kinds.append({"type": "number", "minimum": setting.decimals[0], "maximum": setting.decimals[1]})
    if setting.truth:
        kinds.append({"type": "boolean"})
    if setting.text:
        kinds.append({"type": "string", "minLength": 1})
    one = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if not setting.several:
        return one
    many = {"type": "array", "minItems": int(bool(setting.default)), "uniqueItems": True, "items": one}
    return {"anyOf": [*kinds, many]}


def schema_text() -> str:
    """The schema as the file workflow/schemas/config.schema.yaml holds it."""
    head = "# Made by: python -m virnucpro.config > workflow/schemas/config.schema.yaml\n"
    # Written and read again, so that a part that stands in two places is written out in both.
    plain = json.loads(json.dumps(json_schema()))
    return head + yaml.safe_dump(plain, sort_keys=False, width=110, allow_unicode=True)


def _checked(source: Source) -> dict[str, Any]:
    """The settings of a source by their whole names, each in its own type."""
    found: dict[str, Any] = {}
    with _named(source):
        for key, value in source.settings.items():
            if key not in GROUPS:
                _check(found, key, value, "")
            elif isinstance(value, Mapping):
                for name, inner in value.items():
                    _check(found, name, inner, f"{key}.")
            else:
                raise UserError(f"setting {key!r} can't be {short(value)}: it must be a mapping of {_names(f'{key}.')}")
    return found


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Say where a setting stands that a sentence is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} ({source.name})") from None


def _check(found: dict[str, Any], name: Any, value: Any, group: str) -> None:
    setting = SETTINGS.get(f"{group}{name}") if isinstance(name, str) and "." not in name else None
    if setting is None:
        known = _names(group)
        guess = difflib.get_close_matches(str(name), known.split(", "), n=1)
        inside = f" in {group[:-1]}" if group else ""
        hint = f"did you mean {guess[0]!r}?" if guess else f"known are {known}"
        raise UserError(f"setting {short(name)}{inside} is not known: {hint}")
    if value is None:
        raise UserError(f"setting {setting.key!r} has no value: give one, or leave the key out")
    found[setting.key] = setting.check(value)


def _names(group: str) -> str:
    if group:
        return ", ".join(key.removeprefix(group) for key in SETTINGS if key.startswith(group))
    return ", ".join(dict.fromkeys(key.partition(".")[0] for key in SETTINGS))


def _fields(chosen: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: chosen[key] for key in keys}


def _group(chosen: Mapping[str, Any], group: str) -> dict[str, Any]:
    return {SETTINGS[key].name: value for key, value in chosen.items() if key.startswith(f"{group}.")}


def _folder(key: str, chosen: Mapping[str, Any], origin: Mapping[str, Source]) -> Path:
    """A folder of ours: every rule's files are named after it."""
    with _named(origin[key]):
        return own_folder(chosen[key], f"setting {key!r}")


def _apart(resources: Path, results: Path, samples: Mapping[str, Any]) -> Path:
    """The folder of resources, where no file or folder of the results has its place."""
    inside, outside = (Path(os.path.abspath(path)) for path in (resources, results))  # noqa: PTH100 - without ..
    first = inside.relative_to(outside).parts[:1] if inside.is_relative_to(outside) else ()
    if first and (first[0].lower() in OURS or first[0] in samples):
        raise UserError(
            f"setting 'resources': {brief(str(resources))} is where {first[0]} of the results goes: name another folder"
        )
    return resources


if __name__ == "__main__":
    print(schema_text(), end="")
