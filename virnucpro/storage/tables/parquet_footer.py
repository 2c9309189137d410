"""Footers of Parquet files whose row groups go to another place of another file.

Arrow writes the row groups of a file one after the other, with one thread. Files of one row group each can be written
by several threads, and their bytes put one behind the other; then only the footers' offsets have to be moved, for
which Arrow has no call. A footer is a structure in Thrift's compact protocol, which knows fields by their numbers
(doc/specs/thrift-compact-protocol.md of apache/thrift); Parquet's are in parquet.thrift of apache/parquet-format.
"""

from __future__ import annotations

from collections.abc import Collection

MAGIC = b"PAR1"

OFFSETS = {(4, 5), (4, 1, 2), (4, 1, 4), (4, 1, 6), *((4, 1, 3, field) for field in (9, 10, 11, 14))}
"""Places in the file: field 4 are the row groups, their field 1 the columns, of which field 3 are the metadata."""

_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


class WrittenFile:
    """What Arrow writes a Parquet file to; its bytes stay as they came, for copying takes time."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def split(self) -> tuple[list[bytes], bytes]:
        """The row groups, in parts, and the footer of a whole file."""
        *parts, last = self._parts
        while len(last) < (size := int.from_bytes(last[-8:-4], "little") + 8):
            last = parts.pop() + last
        parts.append(last[:-size])
        if parts[0][: len(MAGIC)] != MAGIC or last[-len(MAGIC) :] != MAGIC:
            raise ValueError("Arrow wrote no Parquet file")
        parts[0] = parts[0][len(MAGIC) :]
        return parts, last[-size:-8]


def end_of_file(footer: bytes) -> bytes:
    """What stands behind the row groups."""
    return footer + len(footer).to_bytes(4, "little") + MAGIC


def moved(footer: bytes, by: int) -> bytes:
    """A footer whose row groups lie so many bytes further on."""
    copy = _Copy(footer, OFFSETS, by)
    copy.struct(())
    if copy.place != len(footer):
        raise ValueError("a Parquet footer goes on behind its end")
    return bytes(copy.out)


class _Copy:
    """Copies a structure, and adds a number to the integers in some of its fields unless they are 0."""

    def __init__(self, source: bytes, fields: Collection[tuple[int, ...]], by: int) -> None:
        self._source, self._fields, self._by = source, fields, by
        self.place, self.out = 0, bytearray()

    def _raw(self, size: int) -> bytes:
        found = self._source[self.place : self.place + size]
        self.place += size
        self.out += found
        return found

    def _varint(self) -> int:
        value = shift = 0
        while True:
            (byte,) = self._raw(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def struct(self, path: tuple[int, ...]) -> None:
        field = 0
        while header := self._raw(1)[0]:
            kind, step = header & 15, header >> 4
            field = field + step if step else _signed(self._varint())
            if kind not in _BOOLEANS:  # which are in the header
                self._value(kind, (*path, field))

    def _value(self, kind: int, path: tuple[int, ...]) -> None:
        if kind in _INTEGERS:
            begin = len(self.out)
            value = _signed(self._varint())
            if path in self._fields and value:
                self.out[begin:] = _varint_of(value + self._by)
        elif kind in _LISTS:
            (header,) = self._raw(1)
            size = self._varint() if header >> 4 == 15 else header >> 4
            for _ in range(size):
                self._value(header & 15, path)
        elif kind == _STRUCT:
            self.struct(path)
        elif kind in (_BYTE, *_BOOLEANS):  # a list's booleans are a byte each
            self._raw(1)
        elif kind in (_DOUBLE, _BINARY):
            self._raw(8 if kind == _DOUBLE else self._varint())
        else:
            raise ValueError(f"a Parquet footer has a field of kind {kind}")


def _signed(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def _varint_of(value: int) -> bytes:
    value = value << 1 if value >= 0 else ~(value << 1)
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
