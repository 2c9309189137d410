"""Features of frames, joined by id: DNABERT-S's 768, then ESM-2's, as VirNucPro's classifier takes them.

They come in VirNucPro's files, which its scripts write and, for ESM-2, our tables in the format ``virnucpro_pt``:

    {"nucleotide": [id, ...], "data": [{"label": id, "mean_representation": [float, ...]}, ...]}     DNABERT-S
    {"proteins": [id, ...], "data": [tensor (D,), ...]}                                               ESM-2
    {"ids": [id, ...], "data": tensor (n, 768 + D)}                                                   both, merged

What a file holds is known by its keys, never by its name or place; rows are known by their ids, never by position.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from virnucpro.base.errors import UserError
from virnucpro.base.text import number, short
from virnucpro.checkpoints.torch_file import load_torch_file, plain_tensor, verify_archive

KINDS = {"nucleotide": "DNABERT-S", "proteins": "ESM-2", "ids": "merged"}
"""The key of a file's ids, and what it then holds."""


@dataclass(frozen=True)
class FeatureFile:
    """One file that was read: its kind (a key of :data:`KINDS`), its ids and the width of its rows."""

    path: Path
    kind: str
    ids: tuple[str, ...]
    width: int


def feature_files(given: Sequence[Path]) -> list[Path]:
    """The files given, and ``output_*.pt`` of the folders given, in the order of their numbers.

    Raises:
        UserError: no such file, or a folder without one.
    """
    found: list[Path] = []
    for path in given:
        inside = sorted(path.glob("output_*.pt"), key=_natural) if path.is_dir() else [path]
        if not inside or not inside[0].is_file():
            raise UserError(f"{path}: no features there; give VirNucPro's output_*.pt files, or folders that hold them")
        found += inside
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


class Features:
    """Files of features, read once for their ids and checks, and once more, pair by pair, for their rows.

    Memory: the ids of all frames, and the features of the files in hand.

    Attributes:
        paths: the files.
        ids: all frames.
        width: features a frame; 0 where there is no frame.

    Raises:
        UserError: a damaged or foreign file, an id that repeats, one that has only one of the two.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._files = [read_features(path)[0] for path in paths]
        places: dict[str, dict[str, tuple[int, int]]] = {kind: {} for kind in KINDS}
        for number_, file in enumerate(self._files):
            for row, name in enumerate(file.ids):
                if name in places[file.kind]:
                    before = self._files[places[file.kind][name][0]].path
                    raise UserError(
                        f"{file.path}: the {KINDS[file.kind]} features of {short(name)} are in {before} too; give each "
                        "frame's once (are files of an earlier run among them?)"
                    )
                places[file.kind][name] = (number_, row)
        bases, self._proteins = places["nucleotide"], places["proteins"]
        for kind, have, lack in (("ESM-2", bases, self._proteins), ("DNABERT-S", self._proteins, bases)):
            lost = [name for name in have if name not in lack]
            if lost:
                raise UserError(
                    f"{number(len(lost), 'frame')} (first: {short(lost[0])}) have no {kind} features in the files "
                    "given; embed them, or give the files that hold them"
                )
        both = next((name for name in places["ids"] if name in bases), None)
        if both is not None:
            raise UserError(f"{short(both)} has merged features and separate ones; give one of the two")
        self.ids = frozenset(bases) | frozenset(places["ids"])
        widths = {kind: self._width(kind) for kind in KINDS}
        self.width = widths["ids"] or widths["nucleotide"] + widths["proteins"]
        if bases and places["ids"] and self.width != widths["nucleotide"] + widths["proteins"]:
            raise UserError("the merged features given are not as wide as the separate ones; give those of one run")

    def _width(self, kind: str) -> int:
        files = [file for file in self._files if file.kind == kind and file.ids]
        other = next((file for file in files if file.width != files[0].width), None)
        if other is not None:
            raise UserError(
                f"{other.path} has {other.width} {KINDS[kind]} features a frame and {files[0].path} {files[0].width}; "
                "give files of one model"
            )
        return files[0].width if files else 0

    def batches(self) -> Iterator[tuple[Sequence[str], NDArray[np.float32]]]:
        """Ids and their features, (n, D), of one file after the other.

        Raises:
            UserError: a file that changed since it was read first.
        """
        held: dict[int, NDArray[np.float32]] = {}
        for file in self._files:
            if file.kind == "proteins" or not file.ids:
                continue
            again, rows = read_features(file.path)
            if again != file:
                raise _changed(file.path)
            if file.kind == "ids":
                yield file.ids, rows
                continue
            wanted = [self._proteins[name] for name in file.ids]
            held = {key: held[key] if key in held else self._protein_rows(key) for key, _ in wanted}
            yield file.ids, np.concatenate([rows, np.stack([held[key][row] for key, row in wanted])], axis=1)

    def _protein_rows(self, key: int) -> NDArray[np.float32]:
        again, rows = read_features(self._files[key].path)
        if again != self._files[key]:
            raise _changed(again.path)
        return rows


def _changed(path: Path) -> UserError:
    return UserError(f"{path} changed while it was read; run the same command again when no one writes to it")


def read_features(path: Path) -> tuple[FeatureFile, NDArray[np.float32]]:
    """One file of features: which frames, and their rows, float32 (n, D).

    Raises:
        UserError: damaged, none of the three kinds, an id's row missing or another's, or values that are no numbers.
    """
    content = load_torch_file(path)
    verify_archive(path)
    kind = next((key for key in KINDS if isinstance(content, Mapping) and key in content), None)
    if kind is None or "data" not in content:
        raise UserError(f"{path} holds no features of VirNucPro: neither nucleotide, proteins nor ids beside data")
    ids, data = content[kind], content["data"]
    if not isinstance(ids, (list, tuple)) or not all(isinstance(name, str) for name in ids):
        raise UserError(f"{path}: its ids are no list of names; write it again")
    if not isinstance(data, (list, tuple, Tensor)) or len(data) != len(ids):
        rows_found = number(len(data), "row") if isinstance(data, (list, tuple, Tensor)) else "no list of rows"
        raise UserError(f"{path} has {number(len(ids), 'id')} and {rows_found}; write it again")
    ids = tuple(ids)
    try:
        rows = _rows(path, kind, ids, data)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(f"{path}: its rows are not of one width, or no numbers; write it again") from None
    if not np.isfinite(rows).all():
        raise UserError(f"{path}: features of {short(ids[int(np.argmin(np.isfinite(rows).all(1)))])} are no numbers")
    return FeatureFile(path, kind, ids, rows.shape[1]), rows


def _rows(path: Path, kind: str, ids: Sequence[str], data: Any) -> NDArray[np.float32]:
    """The rows, float32 (n, D); bounded by the size of the file before they are made."""
    if not ids:
        return np.empty((0, 0), np.float32)
    vectors: list[Any] = []
    for name, entry in zip(ids, data, strict=True):
        if kind == "nucleotide":
            if name != entry["label"]:
                label = short(entry["label"])
                raise UserError(f"{path}: the row of {short(name)} is labelled {label}; write the file again")
            vector = entry["mean_representation"]
            if not isinstance(vector, list) or not set(map(type, vector)) <= {float, int}:
                raise ValueError("a frame has a list of numbers")
        else:
            vector = plain_tensor(path, name, entry)
            if vector.ndim != 1:
                raise ValueError("a frame has one vector")
        vectors.append(vector)
    if len(vectors[0]) * len(vectors) > MOST_NUMBERS_PER_BYTE * path.stat().st_size:
        raise UserError(f"{path}: its rows are repeated without end, as no features are; write it again")
    if kind == "nucleotide":
        with np.errstate(over="ignore"):  # what becomes infinite is refused by name
            return np.array(vectors, np.float32)
    stacked: NDArray[np.float32] = torch.stack(vectors).float().numpy()
    return stacked


MOST_NUMBERS_PER_BYTE = 10
"""Of a file, compressed ones included; a row that stands in a file once can be named a million times."""
