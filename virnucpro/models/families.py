"""Every architecture that the package can run; a new one is one more entry here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from virnucpro.base.errors import UserError
from virnucpro.checkpoints.files import CheckpointFiles
from virnucpro.checkpoints.tensors import foreign_model, read_tensors
from virnucpro.models.base import Checkpoint, Family
from virnucpro.models.esm2.family import ESM2_FAMILY
from virnucpro.models.mosaic_bert.family import MOSAIC_BERT_FAMILY

FAMILIES: tuple[Family[Any], ...] = (ESM2_FAMILY, MOSAIC_BERT_FAMILY)


def family_named(name: str) -> Family[Any]:
    """The family of this name (see :attr:`virnucpro.models.base.Sizes.family`).

    Raises:
        KeyError: there is none.
    """
    return {family.name: family for family in FAMILIES}[name]


def write_demo_checkpoint(name: str, folder: Path) -> Path:
    """Write a demo model's checkpoint into a folder and give its path.

    Raises:
        KeyError: no family has such a demo.
    """
    writers = {family.demo: family.write_demo for family in FAMILIES}
    return writers[name](folder)


def read_checkpoint(path: Path | CheckpointFiles) -> Checkpoint[Any]:
    """A checkpoint, one file or a folder, of the first family that knows its layout.

    Raises:
        UserError: no family does (the sentence says what it is), or see :meth:`virnucpro.models.base.Family.read` and
            :func:`virnucpro.checkpoints.tensors.read_tensors`.
    """
    stored = read_tensors(path)
    for family in FAMILIES:
        found: Checkpoint[Any] | None = family.read(stored)
        if found is not None:
            return found
    known = " or ".join(family.name for family in FAMILIES)
    raise UserError(f"{stored.path} {foreign_model(stored) or 'is of a model that is not known here'}: {known} is read")
