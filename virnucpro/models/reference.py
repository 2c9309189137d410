"""Which model a user means: a known one by its name, or a checkpoint by its path or its place on the hub."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from virnucpro.base.digest import FileProof
from virnucpro.base.errors import UserError
from virnucpro.base.paths import matching
from virnucpro.base.settings import SETTINGS, default
from virnucpro.base.text import brief, short
from virnucpro.checkpoints.files import CheckpointFiles, adapter_files, checkpoint_files
from virnucpro.checkpoints.hub import HubId
from virnucpro.models.esm2 import sizes as esm2
from virnucpro.models.mosaic_bert import sizes as mosaic_bert

AnySizes = esm2.Architecture | mosaic_bert.MosaicSizes
"""Every family's sizes, which their entry ``family`` tells apart."""

LONGEST_NAME = 200
"""Bytes of a checkpoint's name: files of ours are called after it and a digest."""

NO_ADAPTER = default("adapter")
"""What the setting ``adapter`` is when there is none."""

Place = Path | HubId
"""Where a checkpoint or an adapter is: a file or folder, or a repository of the hub."""


@dataclass(frozen=True)
class ModelRef:
    """A model that we know by ``name`` (``place`` is None), or the checkpoint at ``place``, called after it.

    ``adapter`` is the place of an adapter that is merged into the model's weights.
    """

    name: str
    place: Place | None = None
    adapter: Place | None = None

    @classmethod
    def of(
        cls,
        model: str | os.PathLike[str] | ModelRef,
        adapter: str | os.PathLike[str] = NO_ADAPTER,
        *,
        folder: Path | None = None,
    ) -> ModelRef:
        """What ``model`` means: one of the names that we know, a file, a folder, or a repository of the hub.

        Args:
            adapter: see :meth:`with_adapter`.
            folder: where relative paths are looked for after the working folder.

        Raises:
            UserError: none of these, or a folder or file of which no checkpoint can be read.
        """
        if not isinstance(model, ModelRef):
            text = os.fspath(model)
            place = None if text in KNOWN else _place(text, "model", folder)
            model = cls(text if place is None else _name(text, place, checkpoint_files), place)
        return model.with_adapter(adapter, folder)

    def with_adapter(self, adapter: str | os.PathLike[str], folder: Path | None = None) -> ModelRef:
        """The model with an adapter: its folder, or its repository on the hub; ``"none"`` changes nothing.

        Args:
            folder: where a relative path is looked for after the working folder.

        Raises:
            UserError: neither, or a folder that holds none.
        """
        text = os.fspath(adapter)
        if text == NO_ADAPTER:
            return self
        place = _place(text, "adapter", folder)
        _name(text, place, adapter_files)
        return replace(self, adapter=place)

    @property
    def path(self) -> Path | None:
        """The file or folder, where the model was named by its path."""
        return self.place if isinstance(self.place, Path) else None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the user has named by path: of the model and of the adapter."""
        model = checkpoint_files(self.path) if self.path is not None else ()
        adapter = adapter_files(self.adapter) if isinstance(self.adapter, Path) else ()
        return (*model, *adapter)

    def source_sha256(self, of_file: Callable[[Path], str]) -> str | None:
        """What stands for the contents of a checkpoint that was named by its path; None for others."""
        return None if self.path is None else checkpoint_files(self.path).sha256(of_file)

    def adapter_sha256(self, of_file: Callable[[Path], str]) -> str | None:
        """The same of the adapter; empty where there is none."""
        if self.adapter is None:
            return ""
        return adapter_files(self.adapter).sha256(of_file) if isinstance(self.adapter, Path) else None

    @property
    def given(self) -> tuple[str, str]:
        """Model and adapter as texts that mean the same from every folder, for :meth:`of`."""
        model = self.name if self.place is None else _whole(self.place)
        return model, NO_ADAPTER if self.adapter is None else _whole(self.adapter)

    def __str__(self) -> str:
        model = self.name if self.place is None else str(self.place)
        return model if self.adapter is None else f"{model} with adapter {self.adapter}"

    def resolve(self, layers: Sequence[int | str]) -> tuple[int | str, ...]:
        """The layers by their numbers where the name tells how many there are, else as they were given.

        Raises:
            UserError: a layer that the model does not have.
        """
        return tuple(layers) if self.place is not None else resolve_layers(layers, KNOWN[self.name].layers)


def resolve_layers(layers: Sequence[int | str] | int | str, count: int) -> tuple[int, ...]:
    """Layer numbers from 0 (the scaled embedding) to ``count``, sorted, each once.

    A negative number counts from the end as esm-extract does: -1 is the last layer.

    Raises:
        UserError: a layer that the model does not have, or no number and not "last".
    """
    resolved = set()
    for layer in SETTINGS["layers"].check(layers):
        number = count if layer == "last" else layer + count + 1 if layer < 0 else layer
        if not 0 <= number <= count:
            raise UserError(f"layer {layer} does not exist: the model has {count} layers, so give 0 to {count}")
        resolved.add(number)
    return tuple(sorted(resolved))


def _place(text: str, setting: str, folder: Path | None) -> Place:
    """The path that a text is, if there is such a file or folder, or else the hub's repository.

    Raises:
        UserError: neither.
    """
    try:
        path, *others = matching(text, f"setting {setting!r}", folder)
    except UserError as error:
        if hub := HubId.of(text):
            return hub
        if setting != "model" or "/" in text or text.startswith("~") or Path(text).suffix:
            raise
        guess = difflib.get_close_matches(text, KNOWN, n=1)
        hint = f"did you mean {guess[0]}? Else give" if guess else "give"
        raise UserError(
            f"unknown model {short(text)}: {hint} one of {', '.join(KNOWN)}, the path of a checkpoint or its folder, "
            "or a repository of huggingface.co (org/name)"
        ) from error
    if others:
        raise UserError(f"{setting} {brief(text)} names {1 + len(others)} files: give the path of one")
    return path


def _whole(place: Place) -> str:
    return str(place.absolute() if isinstance(place, Path) else place)


def _name(text: str, place: Place, find: Callable[[Path], CheckpointFiles]) -> str:
    """What to call the checkpoint or adapter; one that is there is looked for in its folder.

    Raises:
        UserError: there is none, or its name is too long.
    """
    if isinstance(place, HubId):
        return place.file_name
    name = find(place).name
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError(f"model {short(text)}: its name is longer than {LONGEST_NAME} bytes: rename it")
    return name


DEMO_WARNINGS = {esm2.DEMO_MODEL: esm2.DEMO_WARNING, mosaic_bert.DEMO_MODEL: mosaic_bert.DEMO_WARNING}
"""What has to be said of the models that are random, by name."""

KNOWN: dict[str, AnySizes] = {
    **esm2.ESM2_MODELS,
    **mosaic_bert.MOSAIC_MODELS,
    esm2.DEMO_MODEL: esm2.DEMO_ARCHITECTURE,
    mosaic_bert.DEMO_MODEL: mosaic_bert.DEMO_SIZES,
}
"""Models that are known by name."""

RELEASED: dict[str, FileProof] = {**esm2.RELEASED, **mosaic_bert.RELEASED}
"""Size and sha256 of their released files, as far as they are known."""


def planning_parameters(model: ModelRef) -> int:
    """How many numbers the model has, about; of a checkpoint whose name tells nothing, by the size of its files."""
    if model.path is not None and _known_as(model) not in KNOWN:
        return max(1, sum(file.stat().st_size for file in checkpoint_files(model.path).weights) // 4)
    return planning_architecture(model).parameters


def planning_architecture(model: ModelRef, otherwise: str = default("model")) -> AnySizes:
    """Sizes to plan with before a checkpoint has been read: one whose name tells nothing is taken for ``otherwise``."""
    return KNOWN.get(_known_as(model), KNOWN[otherwise])


def _known_as(model: ModelRef) -> str:
    """The model's name without that of an organisation of the hub: ``facebook/esm2_t6_8M_UR50D`` tells its sizes."""
    name = model.place.repository.partition("/")[2] if isinstance(model.place, HubId) else model.name
    return name.rpartition("--")[2]
