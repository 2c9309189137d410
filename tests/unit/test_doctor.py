"""The doctor: passes what is right, and finds what is wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from virnucpro.attention.segments import Segments
from virnucpro.doctor import (
    PUBLISHED,
    PublishedVectors,
    embed_by_fair_esm,
    format_findings,
    random_proteins,
    run_doctor,
)
from virnucpro.engine import run as run_module
from virnucpro.engine.outputs import segment_sums
from virnucpro.models.esm2.checkpoint import load_checkpoint
from virnucpro.models.esm2.family import ESM2_FAMILY
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "esm2_tiny.pt"
    write_checkpoint(path, Architecture(3, 64, 4), regression=False)
    return str(path)


def test_the_doctor_passes_this_machine(checkpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        findings = run_doctor(checkpoint, "cpu", proteins=4, longest=200, logger=logging.getLogger("t"))
    assert [one.name for one in findings] == ["fair-esm float32", "virnucpro float32"]
    ours = findings[1]
    assert 0 < ours.residue_error < 2e-5
    assert 0 < ours.pooled_error < 2e-5
    assert ours.cosine_distance < 1e-6
    assert ours.tokens_per_second > 0
    assert ours.computed_by == "sdpa, eager"
    assert "all within their limits" in caplog.text


@pytest.mark.parametrize("step", [0.5, float("nan")])
def test_the_doctor_finds_wrong_numbers(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: float
) -> None:
    right = segment_sums
    wrong = torch.arange(64) * 0.5
    wrong[3] *= step

    def spoil_the_last(x: torch.Tensor, segments: Segments) -> torch.Tensor:
        sums: torch.Tensor = right(x, segments)
        sums[-1] += wrong
        return sums

    monkeypatch.setattr(run_module, "segment_sums", spoil_the_last)
    with caplog.at_level(logging.INFO):
        findings = run_doctor(checkpoint, "cpu", proteins=3, longest=50, logger=logging.getLogger("t"))
    assert not findings[1].passed
    assert "not to be trusted on this device: virnucpro float32" in format_findings(findings, "m", "cpu")
    assert "TOO FAR OFF" in caplog.text


def test_published_vectors_of_a_released_model_are_compared_with(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    proteins = (b"MKLVWYACDEFGHIK", b"STFFNRFFQF")
    architecture, state = load_checkpoint(Path(checkpoint))
    ids = ESM2_FAMILY.tokenizer().encode(list(proteins), ["", ""])
    with torch.inference_mode():
        means = [mean for _, mean in embed_by_fair_esm(state, architecture, ids, torch.device("cpu"), torch.float32)[0]]
    channels = {channel: (float(means[0][channel]), float(means[1][channel]) + 0.25) for channel in (2, 63)}
    monkeypatch.setitem(PUBLISHED, "esm2_tiny", PublishedVectors(proteins, channels))
    with caplog.at_level(logging.INFO):
        findings = run_doctor(checkpoint, "cpu", proteins=3, longest=50, logger=logging.getLogger("t"))
    assert [round(one.published or 0, 4) for one in findings] == [0.25, 0.25]
    assert "virnucpro float32         2.5e-01" in caplog.text


def test_the_published_proteins_are_those_of_the_original_program() -> None:
    known = PUBLISHED["esm2_t36_3B_UR50D"]
    assert max(abs(values[0]) for values in known.channels.values()) == known.channels[1542][0] == 12.42389
    assert all(0 <= channel < 2560 and len(values) == len(known.proteins) for channel, values in known.channels.items())


def test_its_proteins_have_the_extremes() -> None:
    lengths = [len(ids) for ids in random_proteins(10, 500)]
    assert (lengths[0], lengths[-1]) == (500, 2)
    assert min(lengths) >= 2
    assert max(lengths) <= 500
