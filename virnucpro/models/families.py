"""Every architecture that the package can run; a new one is one more entry here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from virnucpro.base.errors import UserError
from virnucpro.models.base import Checkpoint, Family
from virnucpro.models.esm2.family import ESM2_FAMILY

FAMILIES: tuple[Family[Any], ...] = (ESM2_FAMILY,)


def family_named(name: str) -> Family[Any]:
    """The family of this name (see :attr:`virnucpro.models.base.Sizes.family`).

    Raises:
        KeyError: there is none.
    """
    return {family.name: family for family in FAMILIES}[name]


def read_checkpoint(path: Path) -> Checkpoint[Any]:
    """A checkpoint of the first family that knows its layout.

    Raises:
        UserError: no family does, or see :meth:`virnucpro.models.base.Family.read`.
    """
    for family in FAMILIES:
        found: Checkpoint[Any] | None = family.read(path)
        if found is not None:
            return found
    raise UserError(f"{path} is no checkpoint of {' or '.join(family.name for family in FAMILIES)}")
