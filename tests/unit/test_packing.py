"""Packing: budgets kept, nothing lost, longest first."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.base.settings import LongProteins
from virnucpro.chunking.size import SPECIAL_TOKENS
from virnucpro.engine.batch import PackedPieces, batch_end, cut_into_pieces, padding_avoided
from virnucpro.models.esm2.alphabet import CLS, EOS
from virnucpro.models.esm2.family import ESM2_FAMILY
from virnucpro.models.families import FAMILIES

CPU = torch.device("cpu")


def work_of(lengths: list[int], longest: int = 8, overlap: int = 3) -> PackedPieces:
    proteins = [np.arange(length, dtype=np.uint8) % 20 + 4 for length in lengths]
    return PackedPieces(
        proteins, cut_into_pieces(np.array(lengths), LongProteins("window", longest, overlap)), ESM2_FAMILY.tokenizer()
    )


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
    assert padding_avoided(np.array([12, 12, 12]), 1000) == 0
    # 12 and 4 tokens padded to 12 and 12: 8 of 24 are padding.
    assert padding_avoided(np.array([12, 4]), 1000) == 8 / 24
    # A budget of 12 holds one of them at a time, so nothing is padded.
    assert padding_avoided(np.array([12, 4]), 12) == 0


def test_costs_count_the_special_tokens_of_every_family() -> None:
    # Those of nucleotides are among their own tokens.
    counts = {family.name: len(family.tokenizer().begin + family.tokenizer().end) for family in FAMILIES}
    assert counts == {"esm2": SPECIAL_TOKENS, "mosaic_bert": 0}


def test_several_special_tokens_on_either_side() -> None:
    tokenizer = SimpleNamespace(begin=(30, 31), end=(32, 33, 34))
    proteins = [np.array([5, 6, 7, 8, 9], np.uint16)]
    packed = PackedPieces(proteins, cut_into_pieces(np.array([5]), LongProteins("window", 3, 1)), tokenizer)
    assert packed.tokens.dtype == np.uint16
    assert packed.tokens.tolist() == [30, 31, 5, 6, 7, 32, 33, 34, 30, 31, 7, 8, 9, 32, 33, 34]
    assert packed.weights.tolist() == [0, 0, 1, 1, 0.5, 0, 0, 0, 0, 0, 0.5, 1, 1, 0, 0, 0]
    assert packed.batch(0, 2, CPU).tokens.dtype == torch.int64
