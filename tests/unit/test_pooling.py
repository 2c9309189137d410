"""Pooling: sums by segment, averages over windows, and values that are not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.engine.outputs import Maxima, Outputs, Residues, ResiduesInMemory, segment_maxima, segment_sums, weigh


def test_sums_are_those_of_float64() -> None:
    lengths = [1, 1024, 7, 3]
    segments = Segments.from_lengths(lengths)
    torch.manual_seed(0)
    hidden = torch.randn(sum(lengths), 48) * 300 + 1000
    weights = torch.rand(sum(lengths))
    found = segment_sums(weigh(hidden, weights), segments)
    exact = torch.stack([part.sum(0) for part in (hidden.double() * weights.double()[:, None]).split(lengths)])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=5e-7, atol=0)


def test_the_reduction_used_on_gpus_agrees() -> None:
    lengths = [2, 700, 1]
    segments = Segments.from_lengths(lengths)
    weighted = torch.randn(sum(lengths), 5, generator=torch.Generator().manual_seed(1))
    found = torch.segment_reduce(weighted, "sum", offsets=segments.cu_seqlens.long(), axis=0, unsafe=True)
    torch.testing.assert_close(found, segment_sums(weighted, segments), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_one_bad_value_anywhere_spoils_its_own_sequence_alone(bad: float, place: int) -> None:
    """Place 0 is a BOS, whose weight is 0."""
    segments = Segments.from_lengths([7, 4])
    hidden = torch.ones(11, 3)
    hidden[place, 1] = bad
    weights = torch.tensor([0.0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0])
    sums = segment_sums(weigh(hidden, weights), segments)
    assert torch.isfinite(sums).all(1).tolist() == [False, True]
    outputs = Outputs(np.array([5, 2]), (3,), 3)
    outputs.add_sums(np.array([0, 1]), {3: sums.numpy()})
    assert outputs.not_finite().tolist() == [0]


def residues_of(lengths: list[int], dtype: str = "float32") -> tuple[Residues, ResiduesInMemory]:
    kept = ResiduesInMemory((2,), 2, dtype)
    return Residues(np.array(lengths), kept, [f"p{row}" for row in range(len(lengths))]), kept


def add(residues: Residues, pieces: list[tuple[int, int, int]], finite: list[bool], value: float = 1.0) -> None:
    """Pieces are protein, first residue, residues; every value of protein ``row`` is ``value * (row + 1)``."""
    rows, starts, lengths = (np.array(column) for column in zip(*pieces, strict=True))
    values = np.repeat((rows + 1) * value, lengths).astype(np.float32)[:, None].repeat(2, axis=1)
    last = starts + lengths == residues._embedded[rows]
    residues.add(rows, starts, lengths, {2: values}, last=last, finite=np.array(finite), narrow=True)


def test_pieces_are_put_together() -> None:
    """Windows of protein 0 come in two batches, with whole proteins between them and one that is not finite."""
    residues, kept = residues_of([3, 2, 1, 2, 1])
    add(residues, [(0, 0, 2), (1, 0, 2)], [True, True])
    assert residues.starts.tolist() == [-1, 0, -1, -1, -1]
    add(residues, [(0, 1, 2), (3, 0, 2), (2, 0, 1), (4, 0, 1)], [True, False, True, True])
    assert residues.starts.tolist() == [2, 0, 5, -1, 6]
    assert kept.values[2][:7, 0].tolist() == [2, 2, 1, 2, 1, 3, 5]
    outputs = Outputs(np.array([3, 2, 1, 2, 1]), (2,), 2, residues)
    again, _ = residues_of([2])
    again.sink = kept
    add(again, [(0, 0, 2)], [True], 9)
    outputs.replace(np.array([3]), Outputs(np.array([2]), (2,), 2, again))
    assert residues.starts.tolist() == [2, 0, 5, 7, 6]
    assert kept.values[2][7:, 0].tolist() == [9, 9]


def test_maxima_are_over_residues_alone_and_the_reduction_used_on_gpus_agrees() -> None:
    lengths = [4, 700, 3]
    segments = Segments.from_lengths(lengths)
    hidden = torch.randn(sum(lengths), 5, generator=torch.Generator().manual_seed(1)).half() - 20
    weights = torch.ones(sum(lengths))
    for end in np.cumsum(lengths).tolist():
        weights[end - 1] = weights[end % sum(lengths)] = 0  # EOS, and the next one's BOS
        hidden[end - 1] = hidden[end % sum(lengths)] = 1000
    found = segment_maxima(hidden, weights, segments)
    assert found.dtype == torch.float32
    wanted = torch.stack([part[1:-1].float().amax(0) for part in hidden.split(lengths)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    masked = hidden.float().masked_fill((weights == 0)[:, None], -torch.inf)
    on_gpus = torch.segment_reduce(masked, "max", offsets=segments.cu_seqlens.long(), axis=0, unsafe=True)
    torch.testing.assert_close(found, on_gpus, rtol=0, atol=0)


def test_maxima_of_windows_are_of_their_sums() -> None:
    maxima = Maxima(np.array([3, 2]), (2,), 1)
    column = np.array([[7.0], [9.0]], np.float32)
    # Residues 0 and 1 of protein 0, and the whole of protein 1, whose maximum comes from the device.
    parts = {2: np.array([[1.0], [-4.0]], np.float32)}
    maxima.add(np.array([0, 1]), np.array([0, 0]), np.array([2, 2]), {2: column}, parts)
    maxima.add(np.array([0]), np.array([1]), np.array([2]), {2: column[:1]}, {2: np.array([[6.0], [-3.0]], np.float32)})
    assert maxima.values[2].tolist() == [[2.0], [9.0]]


def test_sums_become_means() -> None:
    outputs = Outputs(np.array([3, 1]), (2,), 2)
    outputs.add_sums(np.array([0, 0, 1]), {2: np.array([[1, 2], [10, 20], [5, 6]], dtype=np.float32)})
    outputs.finish()
    np.testing.assert_allclose(outputs.mean[2], np.array([[11 / 3, 22 / 3], [5, 6]]))
    other = Outputs(np.array([1]), (2,), 2)
    other.mean[2][:] = 7
    outputs.replace(np.array([1]), other)
    assert outputs.mean[2][1].tolist() == [7, 7]


def test_what_float16_cannot_hold_is_named() -> None:
    residues, kept = residues_of([2, 1, 3], "float16")
    add(residues, [(0, 0, 2)], [True], 60_000)
    assert kept.values[2].dtype == np.float16
    with pytest.raises(UserError, match=r"embedding of 'p2' in layer 2 has values that float16 cannot hold"):
        add(residues, [(1, 0, 1), (2, 0, 3)], [True, True], 30_000)
