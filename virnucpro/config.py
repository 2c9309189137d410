"""The configuration of a run: defaults, validation and the samples, out of what the user gave."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from virnucpro.base.errors import UserError
from virnucpro.base.settings import InputPolicies, resolve_layers
from virnucpro.chunking.size import chunk_size
from virnucpro.models.esm2.sizes import DEMO_ARCHITECTURE, DEMO_MODEL, ESM2_MODELS, Architecture, architecture_by_name

COMPRESSION_ENDINGS = (".gz", ".bgz")
FASTA_ENDINGS = (".fasta", ".fas", ".fa", ".faa", ".fna", ".ffn", ".fsa", ".pep", ".mpfa", ".txt")
TABLE_ENDINGS = (".tsv", ".csv")


@dataclass(frozen=True)
class RunConfig:
    """A validated configuration with every default filled in."""

    samples: dict[str, tuple[Path, ...]]
    input: str
    policies: InputPolicies
    nucleotide_window: int
    results: Path
    resources: Path
    model: str
    layers: tuple[int | str, ...]
    pooling: tuple[str, ...]
    precision: str
    chunk_residues: int
    chunks_multiple_of: int
    long_policy: str
    longest: int
    overlap: int
    formats: tuple[str, ...]
    dtype: str
    records_per_file: int
    gpus_per_job: int
    prefer_features: tuple[str, ...]

    @property
    def embedding(self) -> dict[str, Any]:
        """The arguments of :class:`virnucpro.base.settings.EmbeddingSettings`."""
        names = ("layers", "pooling", "precision", "long_policy", "longest", "overlap")
        return {name: getattr(self, name) for name in names}

    @property
    def split_policies(self) -> InputPolicies:
        """What is done about a sample's proteins; translated frames of repeats may look like anything."""
        return replace(self.policies, suspicious="accept") if self.input == "nucleotide" else self.policies

    @property
    def model_path(self) -> Path | None:
        """The checkpoint that the user named by its path, if it was named so."""
        return Path(self.model) if is_checkpoint_path(self.model) else None

    @property
    def model_name(self) -> str:
        """The model's name: fair-esm's, or the stem of the checkpoint's file."""
        return self.model_path.stem if self.model_path else self.model

    @property
    def embed_dim(self) -> int:
        """Embedding size where the name tells it, else that of the 3B model; for planning only."""
        return planning_architecture(self.model).embed_dim


def is_checkpoint_path(model: str) -> bool:
    """Whether ``model`` names a file and not one of the known models."""
    return model != DEMO_MODEL and model not in ESM2_MODELS and (model.endswith(".pt") or "/" in model)


def planning_architecture(model: str) -> Architecture:
    """Sizes to plan with before a checkpoint has been read: a path is taken for the 3B model."""
    if is_checkpoint_path(model):
        by_stem = {**ESM2_MODELS, DEMO_MODEL: DEMO_ARCHITECTURE}
        return by_stem.get(Path(model).stem, ESM2_MODELS["esm2_t36_3B_UR50D"])
    return architecture_by_name(model)


def load_config(given: Mapping[str, Any], schema_path: Path, *, beside: Path) -> RunConfig:
    """Fill in the defaults, validate, and find the sample files.

    Args:
        given: what Snakemake read from config files and ``--config``.
        schema_path: the JSON schema (YAML) that holds every key's description and default.
        beside: folder where relative paths are looked for after the working directory.

    Raises:
        UserError: for an unknown key, a wrong value, a missing sample file or two samples of one name.
    """
    schema = yaml.safe_load(schema_path.read_text(encoding="utf-8"))
    numbered = {key: value if key == "samples" else _with_numbers(value) for key, value in given.items()}
    config = with_defaults(numbered, schema)
    error = best_match(Draft202012Validator(schema).iter_errors(config))
    if error is not None:
        raise UserError(sentence(error))
    layers = _as_tuple(config["layers"])
    _check_model(config["model"], layers)
    pooling = _as_tuple(config["pooling"])
    long_proteins, merge = config["long_proteins"], config["merge"]
    if long_proteins["policy"] == "window" and long_proteins["overlap"] >= long_proteins["longest"]:
        raise UserError(
            f"config key long_proteins.overlap ({long_proteins['overlap']}) must be less than "
            f"long_proteins.longest ({long_proteins['longest']})"
        )
    if "virnucpro_pt" in merge["formats"] and ("mean" not in pooling or len(layers) != 1):
        raise UserError("merge format virnucpro_pt holds one mean vector a protein: set pooling to mean and one layer")
    width = planning_architecture(config["model"]).embed_dim
    size = chunk_size(config["chunk_residues"], embed_dim=width, layers=len(layers), pooling=pooling)
    return RunConfig(
        samples=find_samples(config["samples"], beside),
        input=config["input"],
        policies=InputPolicies(**{field.name: config[field.name] for field in fields(InputPolicies)}),
        nucleotide_window=config["nucleotide"]["window"],
        results=Path(config["results"]),
        resources=Path(config["resources"]),
        model=config["model"],
        layers=layers,
        pooling=pooling,
        precision=config["precision"],
        chunk_residues=size.residues,
        chunks_multiple_of=size.multiple_of,
        long_policy=long_proteins["policy"],
        longest=long_proteins["longest"],
        overlap=long_proteins["overlap"],
        formats=tuple(merge["formats"]),
        dtype=merge["dtype"],
        records_per_file=merge["records_per_file"],
        gpus_per_job=config["gpus_per_job"],
        prefer_features=tuple(config["prefer_features"]),
    )


def _check_model(model: str, layers: tuple[int | str, ...]) -> None:
    """Find out what is wrong with the model and its layers before any job runs, as far as the name tells."""
    if not is_checkpoint_path(model):
        resolve_layers(layers, architecture_by_name(model).layers)
    elif not Path(model).expanduser().is_file():
        known = ", ".join(ESM2_MODELS)
        raise UserError(f"model {model} does not exist: give the path of a checkpoint, or one of {known}")


def with_defaults(config: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``config`` with the schema's defaults for every key that is missing, nested ones too."""
    filled = dict(config)
    for key, part in schema.get("properties", {}).items():
        if key not in filled and "default" in part:
            filled[key] = deepcopy(part["default"])
        if isinstance(filled.get(key), Mapping) and "properties" in part:
            filled[key] = with_defaults(dict(filled[key]), part)
    return filled


def _with_numbers(value: Any) -> Any:
    """Whole numbers inside lists and mappings, which Snakemake's ``--config key=[1,2]`` leaves as text."""
    if isinstance(value, Mapping):
        return {key: _with_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_numbers(part) for part in value]
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?\d+", value) else value


def sentence(error: ValidationError) -> str:
    """One sentence for a user out of a JSON schema error."""
    where = ".".join(str(part) for part in error.absolute_path)
    schema = cast("dict[str, Any]", error.schema)
    if error.validator == "additionalProperties":
        known = list(schema["properties"])
        unknown = [key for key in cast("dict[str, Any]", error.instance) if key not in known]
        guess = difflib.get_close_matches(str(unknown[0]), known, n=1)
        inside = f" in {where}" if where else ""
        hint = f"did you mean {guess[0]!r}?" if guess else f"known keys are {', '.join(known)}"
        return f"config key {unknown[0]!r}{inside} is not known: {hint}"
    allowed = _described(schema)
    return f"config key {where!r} can't be {error.instance!r}: it must be {allowed}"


def _described(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_described(part) for part in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kinds = {"string": "text", "integer": "a whole number", "array": "a list", "object": "a mapping"}
    kind = kinds.get(schema.get("type", ""), str(schema.get("type")))
    if "minimum" in schema:
        kind += f" of {schema['minimum']} or more"
    if schema.get("minLength") or schema.get("minItems") or schema.get("minProperties"):
        kind += " that is not empty"
    if schema.get("type") == "array" and "items" in schema:
        kind += f", each {_described(schema['items'])}"
    return kind


def find_samples(samples: Any, beside: Path) -> dict[str, tuple[Path, ...]]:
    """Samples by name, each with its FASTA files, out of any of the forms that the config allows.

    Raises:
        UserError: for a missing file, an impossible name, or two files of one sample name.
    """
    found: dict[str, list[Path]] = {}
    for name, file in _named_files(samples, beside):
        if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
            raise UserError(
                f"sample name {name!r} can't be a folder's name: use letters, digits, '.', '_', '+' and '-' "
                "(name it in a samples table)"
            )
        found.setdefault(name, []).append(_existing(file, beside))
    return {name: tuple(files) for name, files in found.items()}


def _named_files(samples: Any, beside: Path) -> Iterator[tuple[str, str]]:
    if isinstance(samples, Mapping):
        for name, files in samples.items():
            yield from ((str(name), file) for file in _split_commas(files))
        return
    files = _split_commas(samples)
    if len(files) == 1 and files[0].lower().endswith(TABLE_ENDINGS):
        yield from _table_rows(_existing(files[0], beside))
        return
    seen: dict[str, str] = {}
    for file in files:
        name = sample_name(file)
        if name in seen:
            raise UserError(
                f"{seen[name]} and {file} would both be sample {name!r}: give them names, "
                "as a mapping of name to file or in a samples table"
            )
        seen[name] = file
        yield name, file


def _table_rows(table: Path) -> Iterator[tuple[str, str]]:
    delimiter = "," if table.suffix.lower() == ".csv" else "\t"
    with table.open(newline="", encoding="utf-8-sig") as handle:
        rows = csv.DictReader(handle, delimiter=delimiter)
        missing = {"sample", "path"} - set(rows.fieldnames or ())
        if missing:
            raise UserError(f"samples table {table} lacks the column {' and '.join(sorted(missing))} in its first line")
        empty = True
        for row in rows:
            name, path = (row["sample"] or "").strip(), (row["path"] or "").strip()
            if not name and not path:
                continue
            if not name or not path:
                raise UserError(f"samples table {table}, line {rows.line_num}: sample and path must both be given")
            empty = False
            yield name, path
        if empty:
            raise UserError(f"samples table {table} has no rows: add a line with a sample and a path")


def sample_name(file: str) -> str:
    """The file's name without its endings: ``reads/a.b.faa.gz`` is ``a.b``."""
    name = Path(file).name
    for endings in (COMPRESSION_ENDINGS, FASTA_ENDINGS):
        for ending in endings:
            if name.lower().endswith(ending) and len(name) > len(ending):
                name = name[: -len(ending)]
                break
    return name


def _existing(file: str, beside: Path) -> Path:
    path = Path(file).expanduser()
    for candidate in (path, beside / path):
        if candidate.is_file():
            return candidate
    state = "is a folder, not a file" if path.is_dir() else "does not exist"
    raise UserError(f"sample file {file} {state}: correct samples in config.yaml or on the command line")


def _split_commas(files: Any) -> list[str]:
    if isinstance(files, str):
        return [part.strip() for part in files.split(",") if part.strip()]
    return [str(file) for file in files]


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)
