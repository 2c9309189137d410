"""Packing: budgets kept, nothing lost, longest first."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.engine.batch import PackedPieces, batch_end, cut_into_pieces, padding_avoided
from virnucpro.models.esm2.alphabet import CLS, EOS

CPU = torch.device("cpu")


def work_of(lengths: list[int], longest: int = 8, overlap: int = 3) -> PackedPieces:
    proteins = [np.arange(length, dtype=np.uint8) % 20 + 4 for length in lengths]
    return PackedPieces(proteins, cut_into_pieces(np.array(lengths), "window", longest, overlap))


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), budget=st.integers(1, 60))
def test_batches_hold_every_residue_and_keep_the_budget(lengths: list[int], budget: int) -> None:
    work = work_of(lengths)
    weight = [np.zeros(length) for length in lengths]
    begin = 0
    previous = 10**9
    while begin < len(work):
        end = batch_end(work.tokens_before, begin, budget)
        batch = work.batch(begin, end, CPU)
        assert len(batch.tokens) <= budget or end - begin == 1
        assert len(batch.tokens) == sum(batch.segments.lengths) == len(batch.weights)
        ends = batch.segments.cu_seqlens.tolist()
        for piece, first, last in zip(range(begin, end), ends, ends[1:], strict=False):
            row, start, length = int(work.row[piece]), int(work.start[piece]), int(work.length[piece])
            assert length <= previous
            previous = length
            assert batch.tokens[first] == CLS
            assert batch.tokens[last - 1] == EOS
            assert batch.tokens[first + 1 : last - 1].tolist() == [i % 20 + 4 for i in range(start, start + length)]
            assert batch.weights[first] == batch.weights[last - 1] == 0
            weight[row][start : start + length] += batch.weights[first + 1 : last - 1].numpy()
            assert batch.segments.positions[first:last].tolist() == list(range(length + 2))
            assert (batch.segments.sequence[first:last] == piece - begin).all()
        begin = end
    for found in weight:
        np.testing.assert_allclose(found, 1.0, rtol=1e-6)


def test_equal_lengths_make_one_run_and_similar_ones_one_bucket() -> None:
    batch = work_of([5, 8, 5, 1, 5, 8]).batch(0, 6, CPU)
    assert batch.segments.runs == [(0, 2, 10), (20, 3, 7), (41, 1, 3)]
    buckets = batch.segments.buckets
    assert [tuple(bucket.tokens.shape) for bucket in buckets] == [(2, 10), (3, 7), (1, 3)]
    assert all(bucket.mask is None for bucket in buckets)
    assert sorted(torch.cat([bucket.packed for bucket in buckets]).tolist()) == list(range(44))


def test_padding_avoided_counts_file_order() -> None:
    assert padding_avoided(np.array([10, 10, 10]), 1000) == 0
    # 12 and 4 tokens padded to 12 and 12: 8 of 24 are padding.
    assert padding_avoided(np.array([10, 2]), 1000) == 8 / 24
    # A budget of 12 holds one of them at a time, so nothing is padded.
    assert padding_avoided(np.array([10, 2]), 12) == 0
