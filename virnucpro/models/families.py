"""Every architecture that the package can run; a new one is one more entry here."""

from __future__ import annotations

from typing import Any

from virnucpro.models.base import Family
from virnucpro.models.esm2.family import ESM2_FAMILY

FAMILIES: tuple[Family[Any], ...] = (ESM2_FAMILY,)


def family_named(name: str) -> Family[Any]:
    """The family of this name (see :attr:`virnucpro.models.base.Sizes.family`).

    Raises:
        KeyError: there is none.
    """
    return {family.name: family for family in FAMILIES}[name]
