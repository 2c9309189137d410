"""Pooling: sums by segment, averages over windows, and values that are not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from virnucpro.attention.segments import Segments
from virnucpro.engine.run import Outputs, segment_sums, weigh


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
    outputs = Outputs(np.array([5, 2]), (3,), 3, per_residue=False)
    outputs.add_sums(np.array([0, 1]), {3: sums.numpy()})
    assert outputs.not_finite().tolist() == [0]


def test_outputs_put_pieces_together() -> None:
    outputs = Outputs(np.array([3, 1]), (2,), 2, per_residue=True)
    outputs.add_sums(np.array([0, 0, 1]), {2: np.array([[1, 2], [10, 20], [5, 6]], dtype=np.float32)})
    outputs.add_residues(0, 0, {2: np.ones((2, 2), np.float32)})
    outputs.add_residues(0, 1, {2: np.ones((2, 2), np.float32)})
    outputs.add_residues(1, 0, {2: np.full((1, 2), 7, np.float32)})
    outputs.finish()
    np.testing.assert_allclose(outputs.mean[2], np.array([[11 / 3, 22 / 3], [5, 6]]))
    assert outputs.residues[2][:, 0].tolist() == [1, 2, 1, 7]
    assert outputs.offsets.tolist() == [0, 3, 4]


def test_replaced_rows_take_the_new_values() -> None:
    outputs = Outputs(np.array([2, 1, 3]), (1,), 2, per_residue=True)
    again = Outputs(np.array([3, 2]), (1,), 2, per_residue=True)
    again.mean[1][:] = [[3, 3], [2, 2]]
    again.residues[1][:, 0] = [31, 32, 33, 21, 22]
    outputs.replace(np.array([2, 0]), again)
    assert outputs.mean[1].tolist() == [[2, 2], [0, 0], [3, 3]]
    assert outputs.residues[1][:, 0].tolist() == [21, 22, 0, 31, 32, 33]
