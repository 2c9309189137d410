"""What a setting is: its name, its meaning, and how a value that somebody gave is checked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

from virnucpro.base.errors import UserError
from virnucpro.base.text import short

_WHOLE = re.compile(r"-?(?:0|[1-9](?:_?[0-9]){0,18})")
_DECIMAL = re.compile(r"[-+]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})")
_TRUTH = {"true": True, "True": True, "false": False, "False": False}
_QUOTES = "YAML may have changed it on the way (007, 0o7 and 7 are one number to it, no is false): put it in quotes"


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: its name in config.yaml, ``group.name`` inside of a mapping.
        about: what it means, in a sentence or two.
        default: what it is when it is not given; a tuple where it may be ``several``.
        words: texts that it may be.
        numbers: the smallest and the largest whole number that it may be.
        decimals: the smallest and the largest number that it may be, whole or not.
        truth: it is true or false.
        text: it may be any text (a name, a path) that is not empty.
        several: it may be a list of such values, each named once; an empty one where that is the default.
    """

    key: str
    about: str
    default: Any
    words: tuple[str, ...] = ()
    numbers: tuple[int, int] | None = None
    decimals: tuple[float, float] | None = None
    truth: bool = False
    text: bool = False
    several: bool = False

    @property
    def name(self) -> str:
        """What it is called as an argument in Python."""
        return self.key.rpartition(".")[2]

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        kinds = [", ".join(self.words)] if self.words else []
        if self.numbers:
            low, high = self.numbers
            kinds.append(f"a whole number of {low} or more" if low >= 0 else f"a whole number from {low} to {high}")
        if self.decimals:
            kinds.append("a number from {:g} to {:g}".format(*self.decimals))
        if self.truth:
            kinds.append("true or false")
        if self.text:
            kinds.append("text that is not empty")
        one = ("one of " if len(self.words) > 1 else "") + " or ".join(kinds)
        return f"{one}, or a list of them" if self.several else one

    def check(self, value: Any) -> Any:
        """The value in its own type, text of digits as a number where a number is meant, several ones as a tuple.

        Raises:
            UserError: it is not one of those allowed, or is named twice.
        """
        if not (self.words or self.numbers or self.decimals or self.truth or self.text):
            return value  # what reads it checks it
        if not self.several:
            return self._one(value)
        given = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        checked = tuple(map(self._one, given))
        if not checked and self.default:
            raise self.error(value)
        if len(set(checked)) < len(checked):
            raise UserError(f"setting {self.key!r} can't be {short(value)}: it names one of them twice")
        return checked

    def error(self, value: Any) -> UserError:
        """The sentence for a value that it cannot be."""
        hint = f"; {_QUOTES}" if self.text and isinstance(value, (int, float)) else ""
        return UserError(f"setting {self.key!r} can't be {short(value)}: it must be {self.allowed}{hint}")

    def _one(self, value: Any) -> Any:
        if self.truth and (isinstance(value, bool) or value in _TRUTH):
            return _TRUTH.get(value, value) if isinstance(value, str) else value
        if self.text and isinstance(value, (str, os.PathLike)) and str(value).strip():
            return os.fspath(value)
        if isinstance(value, str):
            if value in self.words:
                return value
            if _WHOLE.fullmatch(value):
                value = int(value)
            elif self.decimals and _DECIMAL.fullmatch(value):
                value = float(value)
        if self.numbers and hasattr(value, "__index__") and not isinstance(value, bool):
            low, high = self.numbers
            if low <= (number := index(value)) <= high:
                return number
        if self.decimals and isinstance(value, (int, float)) and not isinstance(value, bool):
            least, most = self.decimals
            if math.isfinite(value) and least <= value <= most:
                return float(value)
        raise self.error(value)
