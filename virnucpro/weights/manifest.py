"""What prepared weights are: stated in the metadata of the weights' own file, so that the two are replaced at once.

And which weights a run wants. Needs the standard library alone: the process that plans a run reads it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple

from virnucpro.base.digest import FileDigests
from virnucpro.base.errors import UserError
from virnucpro.base.records import RecordError, parse_record
from virnucpro.base.safetensors_header import Header, HeaderError, read_header
from virnucpro.models.reference import AnySizes, ModelRef

METADATA_ENTRY = "virnucpro"
"""The name of the manifest in the safetensors metadata."""

TOKENIZER_ENTRY = "tokenizer"
"""The name of the model's tokenizer there, for a family whose models have one each."""

WAY_OUT = "delete it and run the same command again"
WAY_OUT_ELSE = "give the file that prepare has written; if it is this one, delete it and run the same command again"


@dataclass(frozen=True)
class WeightsManifest:
    """Facts about prepared weights; equal checkpoints give an equal file, byte for byte (no dates, no paths).

    ``sha256`` stands for the tensors, their names, dtypes, shapes and numbers, and for the tokenizer where there is
    one (:func:`virnucpro.weights.file.digest`).
    ``source_sha256`` stands for the checkpoint that they were made from
    (:meth:`virnucpro.checkpoints.files.CheckpointFiles.sha256`), ``adapter_sha256`` for the adapter that was merged
    into it; empty without one. ``source`` names both with their files. ``parameters`` counts the embedding part.
    ``dtype`` is as in ``torch.float16`` without ``torch.``. ``demo`` marks random weights.
    """

    FORMAT: ClassVar[str] = "virnucpro-weights-4"

    model: str
    sha256: str
    source_sha256: str
    adapter_sha256: str
    source: str
    architecture: AnySizes
    dtype: str
    parameters: int
    demo: bool

    @property
    def layers(self) -> int:
        return self.architecture.layers

    @property
    def embed_dim(self) -> int:
        return self.architecture.embed_dim


class Weights(NamedTuple):
    """A file of prepared weights, and what its header says of them.

    ``tokenizer`` is the text that they keep for their family's tokenizer; empty where there is none.
    """

    path: Path
    manifest: WeightsManifest
    tokenizer: str


def read_weights(path: Path) -> Weights:
    """What a file of prepared weights says; the weights themselves are not looked at.

    Raises:
        UserError: there is no such file, or it is damaged, or holds no weights that were prepared by this version.
    """
    with open_weights(path) as file:
        header, manifest = read_weights_header(Path(path), file)
    return Weights(Path(path), manifest, header.metadata.get(TOKENIZER_ENTRY, ""))


def read_manifest(path: Path) -> WeightsManifest:
    """The manifest alone; raises as :func:`read_weights`."""
    return read_weights(path).manifest


def open_weights(path: Path) -> BinaryIO:
    """Open a file of prepared weights.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise UserError(f"no weights at {path}: run the workflow's rule prepare_weights") from None
    except OSError as error:
        raise UserError(f"weights {path} cannot be read ({error.strerror})") from None


def read_weights_header(path: Path, file: BinaryIO) -> tuple[Header, WeightsManifest]:
    """Header and manifest of an open file; ``path`` is named in errors.

    Raises:
        UserError: damaged, or not prepared by this version.
    """
    try:
        header = read_header(file)
        return header, parse_record(header.metadata.get(METADATA_ENTRY, ""), WeightsManifest, path)
    except HeaderError as error:
        raise UserError(
            f"weights {path} are damaged or were not prepared by virnucpro ({error}): {WAY_OUT_ELSE}"
        ) from None
    except RecordError as error:
        raise UserError(f"the manifest in weights {path} {error.reason}: {WAY_OUT}") from None


def weights_name(model: ModelRef, source_sha256: str | None, adapter_sha256: str | None) -> str:
    """The name of a model's weights: of a checkpoint that was given by its path with digits of its sha256.

    A file may be called like a released model or like another file; its contents decide. An adapter adds digits of
    its own sha256, or of its id on the hub.
    """
    name = model.name if model.path is None else f"{model.name}-{str(source_sha256)[:12]}"
    if model.adapter is None:
        return name
    adapter = adapter_sha256 or hashlib.sha256(str(model.adapter).encode()).hexdigest()
    return f"{name}+{adapter[:12]}"


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
