"""Which model a user means: a released one by its name, the demo, or a checkpoint by its path."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virnucpro.base.errors import UserError
from virnucpro.base.paths import matching
from virnucpro.base.settings import default, resolve_layers
from virnucpro.base.text import brief, short
from virnucpro.models.esm2 import sizes as esm2
from virnucpro.models.mosaic_bert import sizes as mosaic_bert

AnySizes = esm2.Architecture | mosaic_bert.MosaicSizes
"""Every family's sizes, which their entry ``family`` tells apart."""

LONGEST_STEM = 200
"""Bytes of a checkpoint's name without its ending: files of ours are called after it and a digest."""


@dataclass(frozen=True)
class ModelRef:
    """A model that we know by ``name`` (``path`` is None), or the checkpoint at ``path``, called after its file."""

    name: str
    path: Path | None = None

    @classmethod
    def of(cls, model: str | os.PathLike[str] | ModelRef, folder: Path | None = None) -> ModelRef:
        """What ``model`` means: one of the names that we know, or else the path of a file.

        Args:
            folder: where a relative path is looked for after the working folder.

        Raises:
            UserError: neither a known name nor an existing file.
        """
        if isinstance(model, ModelRef):
            return model
        text = os.fspath(model)
        if text in KNOWN:
            return cls(text)
        try:
            path, *others = matching(text, "setting 'model'", folder)
        except UserError as error:
            if "/" in text or text.startswith("~") or Path(text).suffix:
                raise
            guess = difflib.get_close_matches(text, KNOWN, n=1)
            hint = f"did you mean {guess[0]}? Else give" if guess else "give"
            raise UserError(
                f"unknown model {short(text)}: {hint} one of {', '.join(KNOWN)}, or the path of a checkpoint (.pt)"
            ) from error
        if others:
            raise UserError(f"model {brief(text)} names {1 + len(others)} files: give the path of one checkpoint")
        if not path.is_file():
            kind = "is a folder: give the path of a checkpoint (.pt) in it" if path.is_dir() else "is no file"
            raise UserError(f"model {brief(text)} {kind}")
        if len(os.fsencode(path.stem)) > LONGEST_STEM:
            raise UserError(f"model {short(text)}: its file name is longer than {LONGEST_STEM} bytes: rename it")
        return cls(path.stem, path)

    def __str__(self) -> str:
        return self.name if self.path is None else str(self.path)

    def resolve(self, layers: Sequence[int | str]) -> tuple[int | str, ...]:
        """The layers by their numbers where the name tells how many there are, else as they were given.

        Raises:
            UserError: a layer that the model does not have.
        """
        return tuple(layers) if self.path is not None else resolve_layers(layers, KNOWN[self.name].layers)


DEMO_WARNINGS = {esm2.DEMO_MODEL: esm2.DEMO_WARNING, mosaic_bert.DEMO_MODEL: mosaic_bert.DEMO_WARNING}
"""What has to be said of the models that are random, by name."""

KNOWN: dict[str, AnySizes] = {
    **esm2.ESM2_MODELS,
    **mosaic_bert.MOSAIC_MODELS,
    esm2.DEMO_MODEL: esm2.DEMO_ARCHITECTURE,
    mosaic_bert.DEMO_MODEL: mosaic_bert.DEMO_SIZES,
}
"""Models that are known by name."""


def planning_parameters(model: ModelRef) -> int:
    """How many numbers the model has, about; of a checkpoint whose name tells nothing, by the size of its file."""
    if model.name not in KNOWN and model.path is not None and model.path.is_file():
        return max(1, model.path.stat().st_size // 4)
    return planning_architecture(model).parameters


def planning_architecture(model: ModelRef) -> AnySizes:
    """Sizes to plan with before a checkpoint has been read: one whose name tells nothing is taken for the default."""
    return KNOWN.get(model.name, KNOWN[default("model")])
