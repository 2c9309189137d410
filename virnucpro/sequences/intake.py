"""Which records of a sample are taken, and under which ids, by the policies for what can't simply be embedded.

A sample's files are read twice: the first reading finds what is wrong and what repeats, the second gives the records to
those who write them and lists the ones that are skipped. Both readings digest the files' bytes, so a file that changes
between them is found, and what was made can be tied to what was read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.base.settings import InputPolicies
from virnucpro.base.text import short
from virnucpro.sequences.fasta import (
    GAPS,
    LONGEST_PROTEIN,
    LONGEST_RECORD,
    FastaRecord,
    RawRecord,
    as_protein,
    empty_file,
    empty_record,
    header_text,
    read_raw,
)
from virnucpro.sequences.files import SequenceFile
from virnucpro.sequences.suspicion import PROTEIN_CHECKS, Check

SKIPPED_COLUMNS = ("id", "file", "line", "reason")

EMPTY_REASON = "no residues"
REPEAT_REASON = "an earlier record has the same id"


class Skipped(NamedTuple):
    """A record that is not embedded: where it stands, and why."""

    id: str
    file: Path
    line: int
    reason: str


@dataclass(frozen=True)
class Kind:
    """What a sample's records are: how letters become a sequence, what is suspicious, what joins a header's words,
    and how many bytes a record may have."""

    clean: Callable[[Path, RawRecord], FastaRecord]
    checks: Sequence[Callable[[], Check]]
    blank: str = " "
    longest: int = LONGEST_RECORD


PROTEINS = Kind(as_protein, PROTEIN_CHECKS, longest=LONGEST_PROTEIN)


class Intake:
    """A sample's records, read once to find out and once more to use them.

    Attributes:
        digests: the sha256 of each file's bytes as the first reading found them, in the order of the files.
        empty: records without residues, known after the first reading.
        repeats: for each record with residues, whether an earlier one has its id, (n,); known after the first reading.
    """

    def __init__(self, inputs: Sequence[Path], kind: Kind, policies: InputPolicies) -> None:
        if not inputs:
            raise UserError("no FASTA file was given for this sample; name at least one")
        self._files = [SequenceFile(path) for path in inputs]
        self._kind = kind
        self._policies = policies
        self.digests: list[str] = []
        self.empty = 0
        self.repeats: NDArray[np.bool_] = np.zeros(0, bool)

    @property
    def is_taken(self) -> NDArray[np.bool_]:
        """For each record of the first reading whether the second one gives it, (n,)."""
        return ~self.repeats if self._policies.duplicate_ids == "skip" else np.ones(len(self.repeats), bool)

    @property
    def skipped(self) -> int:
        """Records that the second reading lists instead."""
        return self.empty + int((~self.is_taken).sum())

    def first_reading(self) -> Iterator[FastaRecord]:
        """Every record with residues, repeats of an id included.

        Raises:
            UserError: a file that can't be read or is not FASTA, a letter that doesn't belong; and what the policies
                refuse: an empty file, record or sample, an id that repeats, what is surely of another kind.
        """
        self._ids = SeenIds()
        self.empty = 0
        for record in self._records(checked=True):
            if record.sequence.strip(GAPS):
                self._ids.add(record.id)
                yield record
            elif self._policies.empty_records == "error":
                raise empty_record(record, ", or set empty_records to skip")
            else:
                self.empty += 1
        self.digests = [file.sha256 for file in self._files]
        first = self._ids.first()
        self.repeats = first != np.arange(len(first))
        if self.repeats.any() and self._policies.duplicate_ids in ("error", "header"):
            raise self._repeat(first)
        if not len(first) and self._policies.empty_samples == "error":
            listed = ", ".join(str(file.path) for file in self._files)
            raise UserError(f"{listed}: no record has a sequence; give one that has, or set empty_samples to skip")

    def second_reading(self, skip: Callable[[Skipped], None]) -> Iterator[FastaRecord]:
        """The records that are taken, under their final ids; the others go to ``skip``.

        Raises:
            UserError: a file is no longer what it was at the first reading.
        """
        name = _Numbering(self._ids) if self._policies.duplicate_ids == "number" and self.repeats.any() else None
        number = 0
        for record in self._records(checked=False):
            if not record.sequence.strip(GAPS):
                skip(Skipped(record.id, record.path, record.line, EMPTY_REASON))
                continue
            is_repeat = number < len(self.repeats) and bool(self.repeats[number])
            number += 1
            if is_repeat and name is None:
                skip(Skipped(record.id, record.path, record.line, REPEAT_REASON))
                continue
            yield record._replace(id=name(record.id)) if is_repeat and name is not None else record
        if [file.sha256 for file in self._files] != self.digests:
            raise self.changed()

    def changed(self) -> UserError:
        """The error for files that are not what they were at the first reading."""
        listed = ", ".join(str(file.path) for file in self._files)
        return UserError(f"{listed}: changed while being read; run the same command again when no one writes to it")

    def _records(self, *, checked: bool) -> Iterator[FastaRecord]:
        for file in self._files:
            path = file.path
            is_suspected = checked and self._policies.suspicious == "refuse"
            checks = [check() for check in self._kind.checks] if is_suspected else []
            is_empty = True
            for raw in read_raw(file, self._kind.longest):
                is_empty = False
                record = self._named(self._kind.clean(path, raw))
                if record.sequence.strip(GAPS):
                    for check in checks:
                        wrong = check.record(raw, record)
                        if wrong is not None:
                            raise UserError(f"{path}, line {record.line}: record {short(record.id)} {wrong}{_INSIST}")
                del raw
                yield record
            for check in checks:
                wrong = check.file()
                if wrong is not None:
                    raise UserError(f"{path} {wrong}{_INSIST}")
            if is_empty and self._policies.empty_samples == "error":
                raise empty_file(path, ", or set empty_samples to skip")

    def _named(self, record: FastaRecord) -> FastaRecord:
        """The record under its whole header, if the policy says so."""
        if self._policies.duplicate_ids != "header":
            return record
        words = [header_text(record.path, record.line, word) for word in record.header.split()]
        return record._replace(id=self._kind.blank.join(words))

    def _repeat(self, first: NDArray[np.int64]) -> UserError:
        """The error for an id that was used twice: reads the files again to name both places."""
        again = np.flatnonzero(self.repeats)
        wanted = (int(first[again[0]]), int(again[0]))
        found = []
        with_residues = (record for record in self._records(checked=False) if record.sequence.strip(GAPS))
        for number, record in enumerate(with_residues):
            if number in wanted:
                found.append(record)
            if number >= wanted[1]:
                break
        if len(found) < len(wanted):
            return self.changed()
        earlier, repeat = found
        more = f" ({again.size} records repeat an id in all)" if again.size > 1 else ""
        ways = "skip or number" if self._policies.duplicate_ids == "header" else "skip, number or header"
        return UserError(
            f"{repeat.path}, line {repeat.line}: the id {repeat.id!r} was already used in {earlier.path}, "
            f"line {earlier.line}{more}; give every record of a sample its own id, or set duplicate_ids to {ways}"
        )


_INSIST = ", or set suspicious to accept to take it as it is"


class _Numbering:
    """Gives repeats of an id the names ``id_2``, ``id_3``, ... that no record has."""

    def __init__(self, ids: SeenIds) -> None:
        self._taken = ids.sorted()
        self._given: set[str] = set()
        self._next: dict[str, int] = {}

    def __call__(self, record_id: str) -> str:
        number = self._next.get(record_id, 2)
        while (name := f"{record_id}_{number}") in self._given or is_among(self._taken, name):
            number += 1
        self._given.add(name)
        self._next[record_id] = number + 1
        return name


def first_of(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each digest, (n, 16), the number of the first row with the same digest, (n,)."""
    n = len(digests)
    halves = np.ascontiguousarray(digests).view(np.uint64).reshape(n, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal digests stay in input order
    is_new = np.ones(n, bool)
    for half in (0, 1):
        ranked = halves[order, half]
        same = ranked[1:] == ranked[:-1]
        is_new[1:] = ~same if half == 0 else is_new[1:] | ~same
    starts = order[is_new]
    first = np.empty(n, np.int64)
    first[order] = starts[np.cumsum(is_new) - 1]
    return first


class SeenIds:
    """The ids of a sample's records, 16 bytes each."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def add(self, record_id: str) -> None:
        self._digests += _id_digest(record_id)

    def first(self) -> NDArray[np.int64]:
        """For each id the number of the first one that is equal, (n,)."""
        return first_of(np.frombuffer(self._digests, np.uint8).reshape(-1, 16))

    def sorted(self) -> NDArray[np.bytes_]:
        """The ids' digests in order, (n,), for :func:`is_among`."""
        return np.sort(np.frombuffer(self._digests, "S16"))


def is_among(ids: NDArray[np.bytes_], record_id: str) -> bool:
    """Whether an id is one of those whose sorted digests are given."""
    wanted = np.bytes_(_id_digest(record_id))
    position = int(np.searchsorted(ids, wanted))
    return position < len(ids) and bool(ids[position] == wanted)


def _id_digest(record_id: str) -> bytes:
    return hashlib.blake2b(record_id.encode(), digest_size=16).digest()


@contextmanager
def skipped_table(path: Path) -> Iterator[Callable[[Skipped], None]]:
    """Write the table of skipped records (tab-separated, UTF-8), whole or not at all; without any it is its header."""
    with atomic_path(path) as beside, beside.open("w", encoding="utf-8", newline="") as out:
        out.write("\t".join(SKIPPED_COLUMNS) + "\n")

        def write(skipped: Skipped) -> None:
            out.write("\t".join(map(str, skipped)) + "\n")

        yield write
