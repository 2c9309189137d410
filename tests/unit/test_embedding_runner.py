"""The loop over batches: out of memory, failing devices, progress, values that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.base.settings import LongProteins
from virnucpro.base.text import clock_time
from virnucpro.engine import run as run_module
from virnucpro.engine.batch import PackedAhead, PackedPieces, cut_into_pieces
from virnucpro.engine.outputs import Outputs, Residues, ResiduesInMemory
from virnucpro.engine.run import (
    CPU_BUDGET,
    GPU_BUDGET,
    LOWEST_BUDGET,
    Progress,
    RunCounts,
    bytes_per_token,
    default_budget,
    reset_peak_memory,
    run_model,
)
from virnucpro.models.base import ModelFacts
from virnucpro.models.esm2.family import ESM2_FAMILY

CPU = torch.device("cpu")
LOGGER = logging.getLogger("test")
LENGTHS = np.array([5, 30, 12, 12, 50, 3])


def test_the_memory_counter_is_reset_in_a_process_that_has_not_used_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch does: without CUDA's start the device is unknown to its counters."""
    started: list[bool] = []

    def reset(device: torch.device) -> None:
        if not started:
            raise RuntimeError("Invalid device argument 0: did you call init?")

    monkeypatch.setattr(torch.cuda, "init", lambda: started.append(True))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    reset_peak_memory(torch.device("cuda", 0))
    assert started
    reset_peak_memory(CPU)
    assert len(started) == 1


class Memory:
    """A model that counts tokens: layer 1 is each token's id; more tokens than ``limit`` do not fit."""

    facts = ModelFacts("esm2", 1, 2, CPU, torch.float32, "x", "x", "eager")

    def __init__(self, limit: int, error: RuntimeError | None = None) -> None:
        self.limit = limit
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        self.batches: list[int] = []

    def __call__(self, tokens: Tensor, segments: Segments, layers: Collection[int]) -> dict[int, Tensor]:
        if len(tokens) > self.limit:
            raise self.error
        self.batches.append(len(tokens))
        return {1: tokens.float()[:, None].expand(-1, 2)}


def run(model: Memory, budget: int, lengths: np.ndarray = LENGTHS) -> tuple[Outputs, RunCounts]:
    proteins = [np.arange(length, dtype=np.uint8) % 20 + 4 for length in lengths]
    work = PackedPieces(proteins, cut_into_pieces(lengths, LongProteins("window", 20, 10)), ESM2_FAMILY.tokenizer())
    names = [f"p{row}" for row in range(len(lengths))]
    outputs = Outputs(lengths, (1,), 2, Residues(lengths, ResiduesInMemory((1,), 2), names))
    made: list[Progress] = []

    def noted(*args: Any, **options: Any) -> Progress:
        made.append(Progress(*args, **options))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "Progress", noted)
        counts = run_model(model, [work], outputs, names=names, token_budget=budget, logger=LOGGER)
    assert made[0].done == [len(lengths), int(work.length.sum()), int(work.tokens_before[-1])]
    outputs.finish()
    return outputs, counts


def test_portions_made_ahead_give_what_one_gives() -> None:
    generator = np.random.default_rng(0)
    sequences = [bytes(generator.choice(list(b"ACDEFGHIKLMNPQRSTVWY"), length).tolist()) for length in LENGTHS]
    names = [f"p{row}" for row in range(len(sequences))]
    found = []
    for portion in (10**6, 50, 1):
        ahead = PackedAhead(sequences, names, ESM2_FAMILY.tokenizer(), LongProteins("window", 20, 10), portion=portion)
        kept = ResiduesInMemory((1,), 2)
        outputs = Outputs(LENGTHS, (1,), 2, Residues(LENGTHS, kept, names))
        heard: list[int] = []
        counts = run_model(
            Memory(limit=45), ahead, outputs, names=names, token_budget=40, heard=heard.append, logger=LOGGER
        )
        outputs.finish()
        assert sum(heard) == counts.tokens
        assert outputs.residues is not None
        residues = kept.values[1]
        rows = zip(outputs.residues.starts, LENGTHS, strict=True)
        found.append([outputs.mean[1], *(residues[start : start + length] for start, length in rows)])
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            np.testing.assert_allclose(one, same, rtol=1e-6)


def test_a_residue_without_a_token_in_a_later_portion() -> None:
    ahead = PackedAhead([b"MKV", b"MK*"], ["a", "b"], ESM2_FAMILY.tokenizer(), LongProteins("full"), portion=3)
    with pytest.raises(UserError, match="'b'"):
        list(ahead)


def check(outputs: Outputs) -> None:
    assert outputs.residues is not None
    assert isinstance(outputs.residues.sink, ResiduesInMemory)
    for row, length in enumerate(LENGTHS):
        ids = np.arange(length) % 20 + 4
        np.testing.assert_allclose(outputs.mean[1][row], ids.mean(), rtol=1e-5)
        start = outputs.residues.starts[row]
        own = outputs.residues.sink.values[1][start : start + length]
        np.testing.assert_allclose(own[:, 0], ids, rtol=1e-6)


def test_out_of_memory_halves_the_budget_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    forward = Memory(limit=45)
    outputs, counts = run(forward, budget=1000)
    check(outputs)
    assert counts.retries > 0
    assert counts.budget <= 45 * 2
    assert max(forward.batches) <= 45
    assert sum("out of memory" in text for text in caplog.messages) == counts.retries


def test_enough_memory_means_no_retry() -> None:
    outputs, counts = run(Memory(limit=10**6), budget=60)
    check(outputs)
    assert counts.retries == 0
    assert counts.budget == 60


def test_a_piece_that_does_not_fit_alone_is_named() -> None:
    with pytest.raises(UserError, match=r"protein 'p(1|4)' does not fit .* even alone \(22 tokens\)"):
        run(Memory(limit=21), budget=1000)


@pytest.mark.parametrize(
    "text",
    ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "[enforce] DefaultCPUAllocator: can't allocate memory"],
)
def test_other_words_for_out_of_memory_halve_too(text: str) -> None:
    outputs, counts = run(Memory(45, RuntimeError(text)), budget=1000)
    check(outputs)
    assert counts.retries > 0


def test_a_failed_device_ends_the_process_with_a_sentence() -> None:
    with pytest.raises(UserError, match=r"device-side assert triggered.*run the same command again"):
        run(Memory(45, RuntimeError("CUDA error: device-side assert triggered\nfor debugging...")), budget=1000)


def test_a_defect_of_ours_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(Memory(45, RuntimeError("shapes do not match")), budget=1000)


def test_progress_speaks_at_a_steady_pace(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    progress = Progress(4, where="NVIDIA H200, varlen_attn", logger=LOGGER, interval=10, clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for number in range(4):
            if number in (0, 2):
                progress.expect(2, 200)  # the other two are taken to have as many
            now[0] += 6
            progress.add(1, 98, 100)
    assert caplog.messages == [
        " 50 %  2 of 4 proteins, 196 residues, 17 tokens/s, 0:12 left, NVIDIA H200, varlen_attn",
        "100 %  4 of 4 proteins, 392 residues, 17 tokens/s, 0:00 left, NVIDIA H200, varlen_attn",
    ]
    assert clock_time(3700) == "1:01:40"


def test_budgets_follow_the_free_memory() -> None:
    cuda = torch.device("cuda", 0)
    large, small = 2560, 320
    assert default_budget(large, CPU, 1, torch.float32) == CPU_BUDGET
    assert default_budget(large, cuda, 1, torch.float16, free_bytes=100 << 30) == GPU_BUDGET
    assert default_budget(small, cuda, 1, torch.float16, free_bytes=100 << 30) == 4 * GPU_BUDGET
    tight = default_budget(large, cuda, 1, torch.float16, free_bytes=2 << 30)
    assert LOWEST_BUDGET <= tight < GPU_BUDGET
    assert tight * bytes_per_token(large, 1, torch.float16) <= 2 << 30
    assert default_budget(large, cuda, 1, torch.float16, free_bytes=0) == LOWEST_BUDGET
