"""What comes out of a run over batches: vectors by protein, and residues on their way to where they are kept.

On the device the tokens of a batch become one vector a piece: weighted sums, channel-wise maxima, first tokens. On the
host those of a protein's pieces are put together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from virnucpro.attention.segments import Segments
from virnucpro.storage.tables.rows import too_large_for


def weigh(hidden: Tensor, weights: Tensor) -> Tensor:
    """Each token's representation times its weight.

    Args:
        hidden: ``(T, D)``.
        weights: float32 ``(T,)``: 0 for special tokens; for a residue 1 over the number of pieces that cover it.

    Returns:
        float32 ``(T, D)``. A value that is not finite stays so, whatever its weight.
    """
    return hidden.float() * weights.unsqueeze(1)


def segment_sums(weighted: Tensor, segments: Segments) -> Tensor:
    """Sum over the tokens of each sequence.

    Args:
        weighted: float32 ``(T, D)`` from :func:`weigh`.

    Returns:
        float32 ``(sequences, D)``. A token that is not finite makes its sequence's sum not finite, so
        the sums alone show whether the representations can be used.
    """
    if weighted.is_cuda:
        return torch.segment_reduce(weighted, "sum", offsets=segments.cu_seqlens.long(), axis=0, unsafe=True)
    # torch.sum adds in blocks on a CPU, which loses less than one running sum.
    return torch.stack([part.sum(0) for part in torch.split(weighted, list(segments.lengths))])


def segment_maxima(hidden: Tensor, weights: Tensor, segments: Segments) -> Tensor:
    """Channel by channel the largest value of each sequence's residues, special tokens apart.

    Args:
        hidden: ``(T, D)``.
        weights: float32 ``(T,)``, as for :func:`weigh`; above 0 for residues.

    Returns:
        float32 ``(sequences, D)``.
    """
    residues = hidden.float().masked_fill((weights == 0).unsqueeze(1), -torch.inf)
    if residues.is_cuda:
        return torch.segment_reduce(residues, "max", offsets=segments.cu_seqlens.long(), axis=0, unsafe=True)
    return torch.stack([part.amax(0) for part in torch.split(residues, list(segments.lengths))])


def first_tokens(hidden: Tensor, segments: Segments) -> Tensor:
    """The representation of each sequence's first token, BOS (``<cls>``): float32 ``(sequences, D)``."""
    return hidden.index_select(0, segments.cu_seqlens[:-1].long()).float()


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
    """A sink that keeps residues in arrays."""

    def __init__(self, layers: Sequence[int], embed_dim: int, dtype: str = "float32") -> None:
        self.dtype = np.dtype(dtype)
        self._parts = {layer: [np.empty((0, embed_dim), self.dtype)] for layer in layers}
        self._rows = 0

    def append(self, values: Mapping[int, NDArray[Any]]) -> int:
        first = self._rows
        for layer, own in values.items():
            self._rows = first + len(own)
            self._parts[layer].append(own)
        return first

    @property
    def values(self) -> dict[int, NDArray[Any]]:
        """For each layer ``(residues, D)``: all that came so far."""
        return {layer: np.concatenate(parts) for layer, parts in self._parts.items()}


class WindowSums:
    """Weighted residues of proteins in windows, summed up until the last window has come; few wait at a time."""

    def __init__(self, embedded: np.ndarray) -> None:
        """Args: ``embedded`` gives the residues of each protein that enter."""
        self._embedded = embedded
        self._begun: dict[int, dict[int, NDArray[np.float32]]] = {}

    def add(self, row: int, start: int, values: Mapping[int, NDArray[Any]]) -> dict[int, NDArray[np.float32]] | None:
        """Add a window of protein ``row``: for each layer its residues ``(length, D)``, which begin at ``start``.

        Returns:
            All residues of the protein where this was its last window, else None.
        """
        residues = int(self._embedded[row])
        if row not in self._begun:
            shape = {layer: (residues, each.shape[1]) for layer, each in values.items()}
            self._begun[row] = {layer: np.zeros(shape[layer], np.float32) for layer in values}
        sums, end = self._begun[row], start
        for layer, each in values.items():
            end = start + len(each)
            sums[layer][start:end] += each
        return self._begun.pop(row) if end == residues else None


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
        self._windows = WindowSums(embedded)

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
                    sums = self._windows.add(int(rows[piece]), int(starts[piece]), own)
                    if sums is not None and finite[piece]:
                        self._hand_on(rows[piece : piece + 1], np.zeros(1, np.int64), sums, narrow=True)

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


class FirstTokens:
    """The representation of BOS; of a protein in windows the mean over its windows, each of which has one.

    Attributes:
        values: for each layer float32 ``(n, D)``: the sum over the pieces until :meth:`finish`, then the mean.
    """

    def __init__(self, proteins: int, layers: Sequence[int], embed_dim: int) -> None:
        self.values = {layer: np.zeros((proteins, embed_dim), np.float32) for layer in layers}
        self._pieces = np.zeros(proteins, np.int64)

    def add(self, rows: np.ndarray, first: Mapping[int, np.ndarray]) -> None:
        """Add what pieces' BOS are, ``(pieces, D)``, to their proteins."""
        np.add.at(self._pieces, rows, 1)
        for layer, values in first.items():
            np.add.at(self.values[layer], rows, values)

    def finish(self) -> None:
        """Turn the sums into means."""
        for sums in self.values.values():
            sums /= np.maximum(self._pieces, 1)[:, None].astype(np.float32)


class Maxima:
    """Channel by channel the largest value over a protein's residues.

    In windows a residue is first averaged over those that cover it, as where residues themselves are kept.

    Attributes:
        values: for each layer float32 ``(n, D)``.
    """

    def __init__(self, embedded: np.ndarray, layers: Sequence[int], embed_dim: int) -> None:
        """Args: ``embedded`` gives the residues of each protein that enter."""
        self.values = {layer: np.zeros((len(embedded), embed_dim), np.float32) for layer in layers}
        self._embedded = embedded
        self._windows = WindowSums(embedded)

    def add(
        self,
        rows: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        maxima: Mapping[int, np.ndarray],
        windowed: Mapping[int, np.ndarray],
    ) -> None:
        """Take the pieces of one batch.

        Args:
            rows, starts, lengths: of each piece: its protein, its first residue in it, its residues.
            maxima: over each piece, ``(pieces, D)``.
            windowed: the weighted residues of the pieces that are parts of proteins, one behind the other.
        """
        is_whole = lengths == self._embedded[rows]
        for layer, values in maxima.items():
            self.values[layer][rows[is_whole]] = values[is_whole]
        end = 0
        for piece in np.flatnonzero(~is_whole).tolist():
            row, start, length = int(rows[piece]), int(starts[piece]), int(lengths[piece])
            begin, end = end, end + length
            sums = self._windows.add(row, start, {layer: values[begin:end] for layer, values in windowed.items()})
            for layer, values in (sums or {}).items():
                self.values[layer][row] = values.max(axis=0)


class Outputs:
    """Sums over residues of n proteins, and what else is asked for.

    Attributes:
        mean: for each layer float32 ``(n, D)``: the sum over the residues until :meth:`finish`, then the mean. They
            are always taken, because they show which proteins have values that are not finite.
        residues: what takes the residues; None where they are not wanted.
        bos, max: the same of these vectors.
    """

    def __init__(
        self,
        embedded: np.ndarray,
        layers: Sequence[int],
        embed_dim: int,
        residues: Residues | None = None,
        *,
        pooling: Collection[str] = (),
    ) -> None:
        """Begin with zeros.

        Args:
            embedded: int64, the residues that enter of each protein; known by the time that it does.
            pooling: may name bos and max.
        """
        self.embedded = np.asarray(embedded, dtype=np.int64)
        self.mean = {layer: np.zeros((len(embedded), embed_dim), dtype=np.float32) for layer in layers}
        self.residues = residues
        self.bos = FirstTokens(len(embedded), layers, embed_dim) if "bos" in pooling else None
        self.max = Maxima(self.embedded, layers, embed_dim) if "max" in pooling else None

    @property
    def vectors(self) -> dict[str, dict[int, NDArray[np.float32]]]:
        """What there is of each protein, by its pooling (mean, bos, max) and by layer, (n, D)."""
        more = {name: kept.values for name, kept in (("bos", self.bos), ("max", self.max)) if kept is not None}
        return {"mean": self.mean, **more}

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
            sums /= self.embedded[:, None].astype(np.float32)  # exact: no protein has 2**24 residues
        if self.bos is not None:
            self.bos.finish()

    def finite(self, rows: np.ndarray | slice) -> NDArray[np.bool_]:
        """For each of these rows whether all values are finite in all layers so far."""
        good = np.ones(len(self.embedded[rows]), dtype=bool)
        for sums in self.mean.values():
            good &= np.isfinite(sums[rows]).all(axis=1)
        return good

    def not_finite(self) -> np.ndarray:
        """Rows with a value that is not finite in any layer."""
        return np.flatnonzero(~self.finite(slice(None)))

    def replace(self, rows: np.ndarray, other: Outputs) -> None:
        """Take ``other``'s proteins, in order, as those of ``rows``."""
        for pooling, layers in other.vectors.items():
            for layer, values in layers.items():
                self.vectors[pooling][layer][rows] = values
        if self.residues is not None and other.residues is not None:
            self.residues.starts[rows] = other.residues.starts
