"""What is wanted of a run: of its samples, of the chunks that they share, and which weights.

Needs the standard library alone, as :mod:`virnucpro.storage.state` does, which compares it with what is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from virnucpro.base.digest import FileDigests
from virnucpro.base.errors import UserError
from virnucpro.base.settings import EmbeddingSettings, InputPolicies, TableSettings
from virnucpro.chunking.manifest import SplitSettings
from virnucpro.models.reference import ModelRef
from virnucpro.storage.sample_files import PoolFiles, SampleFiles
from virnucpro.weights.manifest import WeightsManifest, read_manifest, weights_name


@dataclass(frozen=True)
class SampleRequest(SampleFiles):
    """What is wanted of one sample.

    Attributes:
        inputs: its FASTA files, in order; contigs when there is a ``window``.
        window: bases of a window that contigs are cut into; None for proteins.
        policies: what is done about records of contigs that can't simply be translated.
        metadata: the table that maps are coloured by.
        neighbours: how many of each protein are listed.
    """

    inputs: tuple[Path, ...]
    window: int | None
    tables: TableSettings
    policies: InputPolicies = InputPolicies()
    metadata: Path | None = None
    neighbours: int = 0


REUSE_INDEX = ".reuse"
"""In the folder of results: the index of earlier results."""


def sources_text(sources: Iterable[Path], devices: str) -> str:
    """What a split's record says of the earlier results that it has looked at; empty without any.

    Args:
        devices: the setting ``reuse_devices``.
    """
    paths = [str(path) for path in sources]
    return json.dumps([*paths, devices]) if paths else ""


def sources_in(text: str) -> list[str]:
    """The paths in what :func:`sources_text` gave."""
    return [str(path) for path in json.loads(text)[:-1]] if text else []


@dataclass(frozen=True)
class PoolRequest(PoolFiles):
    """How the sequences of all samples are wanted.

    Attributes:
        also: splits that will do as well as ``split``.
        sources: what :func:`sources_text` says of the earlier results that are to be used.
    """

    split_settings: SplitSettings
    embedding: EmbeddingSettings
    also: tuple[SplitSettings, ...] = ()
    sources: str = ""


@dataclass(frozen=True)
class WeightsRequest:
    """Which weights are wanted, and the file that holds them.

    ``source_sha256`` and ``adapter_sha256`` are the contents of checkpoint and adapter, each None where it was not
    given by its path and any will do.
    """

    model: str
    file: Path
    source_sha256: str | None
    adapter_sha256: str | None

    @classmethod
    def of(cls, model: ModelRef, folder: Path, digests: FileDigests) -> WeightsRequest:
        """The weights of a model in the folder that keeps them; a checkpoint given by its path is known by its content.

        Raises:
            OSError: the checkpoint cannot be read.
        """
        source, adapter = model.source_sha256(digests.sha256), model.adapter_sha256(digests.sha256)
        name = weights_name(model, source, adapter)
        return cls(name, folder / f"{name}.safetensors", source, adapter)

    def prepared(self, read: Callable[[Path], WeightsManifest] = read_manifest) -> WeightsManifest | None:
        """The manifest of the weights, where they are prepared as they are wanted.

        Args:
            read: reads the manifest of a file, or knows it.
        """
        try:
            manifest = read(self.file)
        except (OSError, UserError):
            return None
        return manifest if self.is_of(manifest) else None

    @property
    def digests(self) -> tuple[str | None, str | None]:
        """Of checkpoint and adapter, for the step that prepares the weights."""
        return self.source_sha256, self.adapter_sha256

    def is_of(self, manifest: WeightsManifest) -> bool:
        """Whether weights are the wanted ones."""
        return (
            manifest.model == self.model
            and self.source_sha256 in (None, manifest.source_sha256)
            and self.adapter_sha256 in (None, manifest.adapter_sha256)
        )
