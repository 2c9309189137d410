"""Small JSON files that pass from one step to another: each is a frozen dataclass, typed and bounded when it is read.

A record names its format and proves itself: the entry ``checksum`` is the sha256 of all other entries, so a byte that
was flipped on its way is noticed. Needs the standard library alone, because the process that plans a run may have no
more.
"""

from __future__ import annotations

import hashlib
import json
import math
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError

LARGEST_FILE = 1 << 28
"""Bytes; a record of a hundred thousand chunks takes some 20 million."""

LARGEST_NUMBER = 1 << 63
"""Whole numbers are smaller, as everything that counts or measures them holds 64 bits; a field that can be nothing but
a whole number counts or measures, so it is not negative."""

LONGEST_TEXT = 1 << 20
"""Characters of one text in a record."""


class Record(Protocol):
    """A frozen dataclass with a class attribute ``FORMAT``, such as ``"virnucpro-split-1"``.

    Fields may be int, float, str, bool, Literal, None, tuples and dictionaries of these with str keys, and dataclasses.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    FORMAT: ClassVar[str]


R = TypeVar("R", bound=Record)
T = TypeVar("T")


class RecordError(UserError):
    """A record that cannot be used; ``reason`` says why, for callers that name their own way out."""

    def __init__(self, path: Path, reason: str, way_out: str = "delete it and run the same command again") -> None:
        super().__init__(f"{path} {reason}; {way_out}")
        self.path = path
        self.reason = reason


def record_text(record: Record) -> str:
    """A record as JSON, with its format and checksum; equal records give equal text."""
    entries = {"format": record.FORMAT, **asdict(cast(Any, record))}
    return json.dumps({**entries, "checksum": _checksum(entries)}, indent=2) + "\n"


def write_record(path: Path, record: Record) -> None:
    """Write a record, whole or not at all."""
    with atomic_path(path) as beside:
        beside.write_text(record_text(record), encoding="utf-8")


def read_record(path: Path, kind: type[R]) -> R:
    """Read a record of one kind.

    Raises:
        RecordError: missing, unreadable, damaged, of another format, or with a field missing, unknown or of a wrong
            type or size.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise RecordError(path, f"is larger than any {kind.FORMAT} record")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecordError(path, "is not there", "run the step that writes it first, or give its folder") from None
    except OSError as error:
        way_out = "have that put right and run the same command again"
        raise RecordError(path, f"cannot be read ({error.strerror})", way_out) from None
    except ValueError:
        raise RecordError(path, "is no record (not UTF-8 text)") from None
    return parse_record(text, kind, path)


def parse_record(text: str, kind: type[R], path: Path) -> R:
    """A record out of its text; ``path`` is named in errors.

    Raises:
        RecordError: see :func:`read_record`.
    """
    try:
        entries = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise RecordError(path, "is no record (not JSON)") from None
    if not isinstance(entries, dict) or entries.get("format") != kind.FORMAT:
        raise RecordError(path, f"is not a record of this version's format {kind.FORMAT}")
    if entries.pop("checksum", None) != _checksum(entries):
        raise RecordError(path, "was damaged or edited: its entries do not give its checksum")
    del entries["format"]
    return from_entries(entries, kind, path)


def from_entries(entries: Mapping[str, Any], kind: type[T], path: Path) -> T:
    """A frozen dataclass (a record or a part of one) out of JSON's values; ``path`` is where they stood.

    Raises:
        RecordError: a field is missing, unknown, or of a wrong type or size.
    """
    try:
        return cast(T, _decoded(kind, entries, "it"))
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError(path, f"is not a complete {getattr(kind, 'FORMAT', kind.__name__)} record: {error}") from None


def _checksum(entries: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _decoded(kind: Any, value: Any, name: str) -> Any:
    """``value`` as a ``kind``; raises TypeError or ValueError with a reason."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _decoded_as_one_of(parts, value, name)
    if origin is Literal:
        if not any(value is part or (type(value) is type(part) and value == part) for part in parts):
            raise ValueError(f"{name} is none of {', '.join(map(str, parts))}")
        return value
    if origin is tuple:
        items = _of_type(value, list, name)
        return tuple(_decoded(parts[0], item, f"an entry of {name}") for item in items)
    if origin in (dict, Mapping):
        entries = _of_type(value, dict, name)
        return {
            _bounded_text(key, name): _decoded(parts[1], item, f"{name}.{key[:40]}") for key, item in entries.items()
        }
    if is_dataclass(kind):
        return _decoded_fields(kind, _of_type(value, dict, name), name)
    if kind is float:
        number = float(_of_type(value, (int, float), name))
        if not math.isfinite(number):
            raise ValueError(f"{name} is not finite")
        return number
    value = _of_type(value, kind, name)
    if kind is int and not 0 <= value < LARGEST_NUMBER:
        raise ValueError(f"{name} is negative or does not fit into 64 bits")
    return _bounded_text(value, name) if kind is str else value


def _decoded_as_one_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    reasons = []
    for kind in kinds:
        if kind is not type(None):
            try:
                if kind is int and -LARGEST_NUMBER < _of_type(value, int, name) < 0:
                    return value  # a layer counted from the end
                return _decoded(kind, value, name)
            except (TypeError, ValueError) as error:
                reasons.append(str(error))
    raise ValueError(reasons[0])


def _decoded_fields(kind: Any, entries: dict[str, Any], name: str) -> Any:
    hints = get_type_hints(kind)
    wanted = [field.name for field in fields(kind)]
    missing = [field for field in wanted if field not in entries]
    unknown = [key for key in entries if key not in wanted]
    if missing or unknown:
        raise ValueError(
            f"{name} lacks {missing[0]}" if missing else f"{name} has an unknown entry {unknown[0][:40]!r}"
        )
    return kind(**{field: _decoded(hints[field], entries[field], field) for field in wanted})


def _of_type(value: Any, kind: Any, name: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} is {type(value).__name__}")
    return value


def _bounded_text(text: str, name: str) -> str:
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{name} is longer than {LONGEST_TEXT} characters")
    return text
