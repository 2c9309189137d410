"""What a chunk file says of itself in its safetensors metadata: typed, with one writer and one reader.

And what it has to say, for given weights and settings, to be exchangeable for another.
In the header each field is an entry of its own: a text as it is, anything else as JSON. Needs the standard library
alone, because the process that plans a run reads it too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from virnucpro.base.errors import UserError
from virnucpro.base.records import RecordError, from_entries
from virnucpro.base.settings import EmbeddingSettings, LongProteins
from virnucpro.models.reference import resolve_layers
from virnucpro.weights.manifest import WeightsManifest

NUMBERS = "1"
"""Raised by a change of the code that changes numbers beyond rounding: earlier results are then not taken over."""

FIRST_NUMBERS = "1"
"""What it was in files that do not say it."""

CALIBRATION = "2c452729409aaf80"
"""Beginning of the sha256 of the proteins that int8's scales are derived from
(virnucpro/models/esm2/calibration.faa)."""


@dataclass(frozen=True, kw_only=True)
class SettingsIdentity:
    """What a chunk file says of the settings; ``pooling`` is sorted, ``precision`` the setting, not what ran.

    ``calibration`` is :data:`CALIBRATION` for int8, else empty.
    """

    pooling: tuple[str, ...]
    precision: str
    long_proteins: LongProteins
    calibration: str = ""


@dataclass(frozen=True, kw_only=True)
class EmbeddingIdentity(SettingsIdentity):
    """What makes one chunk file exchangeable for another: equal in all files of one table. ``layers`` are numbers."""

    model: str
    weights_sha256: str
    embed_dim: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class RunStatistics:
    """Counts and times of one embed job.

    ``seconds`` is the time of the loop over batches, without ``load_seconds`` for the model; ``padding_avoided`` the
    share (0 to 1) of padding that padded batches in file order would have had. The memory is the device's, or the
    process's on a CPU. ``recomputed`` proteins overflowed in half precision and ran once more in a wider format.
    """

    proteins: int
    residues: int
    tokens: int
    seconds: float
    load_seconds: float
    padding_avoided: float
    peak_memory_bytes: int
    out_of_memory_retries: int
    recomputed: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    @classmethod
    def sum(cls, parts: Sequence[RunStatistics]) -> RunStatistics:
        """Counts and times added up; the memory is that of the one that took most."""
        total = {field.name: sum(getattr(part, field.name) for part in parts) for field in fields(cls)}
        # A share s of padding means tokens / (1 - s) places in padded batches, and places add up where shares do not.
        padded = sum(part.tokens / (1 - part.padding_avoided) for part in parts if part.padding_avoided < 1)
        total["padding_avoided"] = 1 - total["tokens"] / padded if padded else 0.0
        total["peak_memory_bytes"] = max((part.peak_memory_bytes for part in parts), default=0)
        return cls(**total)


@dataclass(frozen=True)
class DeviceRun:
    """Where and how a chunk was computed; what differed between several devices is joined by " + ".

    ``precisions`` are the number formats that the tensor ``precision`` counts, ``layers_run`` says whether layers ran
    eager or fused, ``versions`` are of the packages that compute the numbers. ``residue_dtype`` is what residues'
    vectors are kept in; files of before it was said have float32. ``host`` is the machine, ``ended`` the time at which
    the last batch was done, as :func:`virnucpro.base.text.utc` writes it; earlier files say neither.
    """

    precisions: tuple[str, ...]
    attention: str
    attention_kernel: str
    device: str
    layers_run: str
    versions: dict[str, str]
    statistics: RunStatistics
    residue_dtype: str = "float32"
    host: str = ""
    ended: str = ""


@dataclass(frozen=True)
class ChunkSource:
    """Which chunk it is and what it was made from.

    ``chunk_digest`` stands for the chunk's sequences in row order, ``source_sha256`` for the checkpoint, which
    ``weights_source`` names (files of earlier versions lack it); ``model_layers`` is the model's number of layers,
    ``demo`` marks random weights, ``reused_from`` names the earlier results that the rows were copied from, if any;
    ``numbers`` is :data:`NUMBERS` of the code that computed them.
    """

    chunk: str
    chunk_digest: str
    source_sha256: str
    model_layers: int
    demo: bool
    weights_source: str = ""
    reused_from: str = ""
    numbers: str = NUMBERS


@dataclass(frozen=True)
class ChunkMetadata:
    """All of it; in the header the fields of the three parts stand side by side."""

    source: ChunkSource
    identity: EmbeddingIdentity
    run: DeviceRun

    def to_entries(self) -> dict[str, str]:
        """The entries of the safetensors header."""
        return header_entries(self.source) | header_entries(self.identity) | header_entries(self.run)

    @classmethod
    def from_entries(cls, entries: Mapping[str, str], path: Path) -> ChunkMetadata:
        """Read a header's entries; others among them are ignored.

        Args:
            path: the file that they are from, for errors.

        Raises:
            RecordError: an entry is missing, or of a wrong type or size.
        """
        return cls(
            read_header_entries(entries, ChunkSource, path),
            read_header_entries(entries, EmbeddingIdentity, path),
            read_header_entries(entries, DeviceRun, path),
        )


RESIDUE_DTYPE = "residue_dtype"
"""The entry of the same field of :class:`DeviceRun`."""

T = TypeVar("T", ChunkSource, EmbeddingIdentity, DeviceRun)


def header_entries(part: ChunkSource | SettingsIdentity | DeviceRun) -> dict[str, str]:
    """The fields as entries of a safetensors header: a text as it is, anything else as JSON.

    Without a calibration no entry says so, as none does in files of before there was one.
    """
    said = {name: value for name, value in asdict(part).items() if (name, value) != ("calibration", "")}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in said.items()}


def read_header_entries(entries: Mapping[str, str], kind: type[T], path: Path) -> T:
    """What :func:`header_entries` wrote.

    Raises:
        RecordError: see :meth:`ChunkMetadata.from_entries`.
    """
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in entries and field.default is not MISSING:
            values[field.name] = field.default
            continue
        if field.name not in entries:
            raise RecordError(path, f"lacks the entry {field.name} in its metadata")
        text = entries[field.name]
        try:
            values[field.name] = text if hints[field.name] is str else json.loads(text)
        except (ValueError, RecursionError):
            raise RecordError(path, f"has a damaged entry {field.name} in its metadata") from None
    return from_entries(values, kind, path)


def decoded(text: str | None) -> Any:
    """A metadata entry as JSON where it is a JSON list or object, else as the text that it is."""
    if text is None or not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def serves(name: str, entries: Mapping[str, str], wanted: str) -> bool:
    """Whether an entry of a chunk file's metadata will do where ``wanted`` is expected; JSON is compared by value.

    Residues in float32 do for tables in float16 too: they are rounded to the same numbers there.
    """
    if name == RESIDUE_DTYPE:
        return entries.get(name, "float32") in ("float32", wanted)
    found = entries.get(name)
    return found is not None and (found == wanted or decoded(found) == decoded(wanted))


def embedding_identity(manifest: WeightsManifest, settings: EmbeddingSettings) -> EmbeddingIdentity:
    """What every chunk file made with these weights and settings has in common, and a merge demands.

    Raises:
        UserError: a layer that the model does not have.
    """
    return EmbeddingIdentity(
        **vars(_settings_part(settings)),
        model=manifest.model,
        weights_sha256=manifest.sha256,
        embed_dim=manifest.embed_dim,
        layers=resolve_layers(settings.layers, manifest.layers),
    )


def _settings_part(settings: EmbeddingSettings) -> SettingsIdentity:
    return SettingsIdentity(
        pooling=tuple(sorted(settings.pooling)),
        precision=settings.precision,
        long_proteins=settings.long_proteins,
        calibration=CALIBRATION if settings.precision == "int8" else "",
    )


def identity(manifest: WeightsManifest, settings: EmbeddingSettings) -> dict[str, str]:
    """:func:`embedding_identity` as the metadata entries of a chunk file.

    Raises:
        UserError: a layer that the model does not have.
    """
    return settings_identity(settings) | header_entries(embedding_identity(manifest, settings))


def settings_identity(settings: EmbeddingSettings) -> dict[str, str]:
    """The part of :func:`identity` that is known without the weights."""
    entries = header_entries(_settings_part(settings))
    if "per_residue" in settings.pooling:
        entries[RESIDUE_DTYPE] = settings.residue_dtype
    return entries


def why_of_others(
    entries: Mapping[str, str],
    embedding: EmbeddingSettings,
    model: str,
    *,
    manifest: WeightsManifest | None = None,
    source_sha256: str | None = None,
) -> str | None:
    """What a chunk file was made with that is not wanted, as a clause; None where it will do.

    Args:
        entries: of its header.
        model: the weights' name.
        manifest: of the weights; None before they are prepared, when their sha256 is not known.
        source_sha256: of their checkpoint, where it was given by its path.
    """
    try:
        layers = json.dumps(resolve_layers(embedding.layers, int(entries["model_layers"])))
    except (KeyError, ValueError, UserError):
        return "made by another version"
    wanted: dict[str, str] = {**settings_identity(embedding), "model": model, "layers": layers}
    if source_sha256 is not None:
        wanted["source_sha256"] = source_sha256
    if manifest is not None:
        wanted |= identity(manifest, embedding)
        wanted.pop("source_sha256", None)  # the same numbers may come from another file
    for name, value in wanted.items():
        if not serves(name, entries, value):
            return f"made with another {name.replace('_', ' ')}"
    return None
