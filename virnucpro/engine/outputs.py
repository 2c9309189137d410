"""What comes out of a run over batches: sums by protein, and residues on their way to where they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from virnucpro.storage.tables.rows import too_large_for


class ResidueSink(Protocol):
    """Where residues' vectors go, in the order in which they come."""

    dtype: np.dtype[Any]

    def append(self, values: Mapping[int, NDArray[Any]]) -> int:
        """Take residues ``(rows, D)`` of each layer, C-contiguous and in :attr:`dtype`, which nobody changes any more.

        Returns:
            The number of the first of them.
        """
        ...


class ResiduesInMemory:
    """A sink that keeps residues in arrays.

    Attributes:
        values: for each layer ``(residues, D)``.
    """

    def __init__(self, residues: int, layers: Sequence[int], embed_dim: int, dtype: str = "float32") -> None:
        self.dtype = np.dtype(dtype)
        self.values = {layer: np.empty((residues, embed_dim), self.dtype) for layer in layers}
        self._rows = 0

    def append(self, values: Mapping[int, NDArray[Any]]) -> int:
        first = self._rows
        for layer, own in values.items():
            self._rows = first + len(own)
            self.values[layer][first : self._rows] = own
        return first


class Residues:
    """Puts pieces of proteins together and hands each protein's residues on as a whole.

    Pieces come in packing order, so those of one protein follow each other, but for other proteins between them, and
    little has to wait.

    Attributes:
        starts: int64 ``(n,)``: the number of each protein's first residue in the sink; -1 until it was handed on.
    """

    def __init__(self, embedded: np.ndarray, sink: ResidueSink, names: Sequence[str]) -> None:
        """Args: ``embedded`` gives the residues of each protein that enter; ``names`` are the ids, for errors."""
        self.starts = np.full(len(embedded), -1, np.int64)
        self.sink = sink
        self._embedded, self._names = embedded, names
        self._begun: dict[int, dict[int, NDArray[np.float32]]] = {}

    def add(
        self, rows: np.ndarray, starts: np.ndarray, lengths: np.ndarray, values: Mapping[int, NDArray[Any]], **of: Any
    ) -> None:
        """Take the pieces of one batch.

        Args:
            rows, starts, lengths: of each piece: its protein, its first residue in it, its residues.
            values: for each layer the pieces' weighted residues, one behind the other.
            of: ``last``, bool ``(pieces,)``: whether it is its protein's last piece; ``finite``, the same: whether all
                that came of the protein is finite, without which it is not handed on; ``narrow``, whether a value
                may be beyond the sink's dtype.

        Raises:
            UserError: a value is too large for the sink's dtype.
        """
        last, finite, narrow = of["last"], of["finite"], of["narrow"]
        bounds = np.concatenate(([0], lengths.cumsum()))
        whole = (lengths == self._embedded[rows]) & last
        ready = whole & finite
        # Runs of whole proteins go on as they lie; pieces of one protein are summed up first.
        breaks = np.flatnonzero(np.diff(ready, prepend=not ready[:1].any(), append=not ready[-1:].any()))
        for begin, end in zip(breaks[:-1].tolist(), breaks[1:].tolist(), strict=True):
            if ready[begin]:
                own = {layer: each[bounds[begin] : bounds[end]] for layer, each in values.items()}
                self._hand_on(rows[begin:end], bounds[begin:end] - bounds[begin], own, narrow)
                continue
            for piece in range(begin, end):
                if not whole[piece]:
                    own = {layer: each[bounds[piece] : bounds[piece + 1]] for layer, each in values.items()}
                    self._sum_up(int(rows[piece]), int(starts[piece]), own, bool(last[piece]), bool(finite[piece]))

    def _sum_up(self, row: int, start: int, values: Mapping[int, NDArray[Any]], last: bool, finite: bool) -> None:
        sums = self._begun.get(row)
        if sums is None:
            shape = {layer: (int(self._embedded[row]), each.shape[1]) for layer, each in values.items()}
            sums = self._begun[row] = {layer: np.zeros(shape[layer], np.float32) for layer in values}
        for layer, each in values.items():
            sums[layer][start : start + len(each)] += each
        if last:
            del self._begun[row]
            if finite:
                self._hand_on(np.array([row]), np.zeros(1, np.int64), sums, narrow=True)

    def _hand_on(self, rows: np.ndarray, begins: np.ndarray, values: Mapping[int, NDArray[Any]], narrow: bool) -> None:
        with np.errstate(over="ignore"):
            kept = {layer: np.ascontiguousarray(each, self.sink.dtype) for layer, each in values.items()}
        if narrow and self.sink.dtype != np.float32:
            for layer, each in kept.items():
                if not np.isfinite(each).all():
                    residue = int(np.flatnonzero(~np.isfinite(each).all(axis=1))[0])
                    row = int(rows[np.searchsorted(begins, residue, side="right") - 1])
                    raise too_large_for(self.sink.dtype.name, self._names[row], layer)
        self.starts[rows] = self.sink.append(kept) + begins


class Outputs:
    """Sums over residues, and residues where asked for, of n proteins.

    Attributes:
        mean: for each layer float32 ``(n, D)``: the sum over the residues until :meth:`finish`, then the mean.
        residues: what takes the residues; None where they are not wanted.
    """

    def __init__(
        self, embedded: np.ndarray, layers: Sequence[int], embed_dim: int, residues: Residues | None = None
    ) -> None:
        """Args: ``embedded`` gives the residues of each protein that enter."""
        self.embedded = np.asarray(embedded, dtype=np.int64)
        self.mean = {layer: np.zeros((len(embedded), embed_dim), dtype=np.float32) for layer in layers}
        self.residues = residues

    def add_sums(self, rows: np.ndarray, sums: Mapping[int, np.ndarray]) -> None:
        """Add pieces' sums ``(pieces, D)`` to their proteins; a protein of several pieces has several ``rows``."""
        distinct = len(np.unique(rows)) == len(rows)
        for layer, values in sums.items():
            if distinct:
                self.mean[layer][rows] += values
            else:
                np.add.at(self.mean[layer], rows, values)

    def finish(self) -> None:
        """Turn the sums into means."""
        for sums in self.mean.values():
            sums /= self.embedded[:, None]

    def finite(self, rows: np.ndarray) -> NDArray[np.bool_]:
        """For each of these rows whether all values are finite in all layers so far."""
        good = np.ones(len(rows), dtype=bool)
        for sums in self.mean.values():
            good &= np.isfinite(sums[rows].sum(axis=1, dtype=np.float64))
        return good

    def not_finite(self) -> np.ndarray:
        """Rows with a value that is not finite in any layer."""
        return np.flatnonzero(~self.finite(np.arange(len(self.embedded))))

    def replace(self, rows: np.ndarray, other: Outputs) -> None:
        """Take ``other``'s proteins, in order, as those of ``rows``."""
        for layer, values in other.mean.items():
            self.mean[layer][rows] = values
        if self.residues is not None and other.residues is not None:
            self.residues.starts[rows] = other.residues.starts
