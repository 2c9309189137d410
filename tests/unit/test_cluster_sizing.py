"""Memory and time of embed jobs: enough, growing with model, chunk and attempt."""

from __future__ import annotations

import numpy as np
import pytest

from virnucpro.base.settings import LongProteins
from virnucpro.chunking.cost import protein_costs
from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.models.esm2.sizes import ESM2_MODELS, Architecture
from virnucpro.slurm.resources import START_MINUTES, embed_memory_mb, embed_minutes

MODEL_3B = ESM2_MODELS["esm2_t36_3B_UR50D"]


def chunk(lengths: list[int], policy: str = "window") -> ChunkManifest:
    """What the split would say of a chunk of these lengths."""
    cost = protein_costs(np.array(lengths), embed_dim=MODEL_3B.embed_dim, long_proteins=LongProteins(policy))
    return ChunkManifest("chunk_00000", len(lengths), sum(lengths), round(float(cost.sum())), "00")


USUAL = chunk([300] * 67_000)


def test_the_default_chunk_of_the_default_model() -> None:
    """20 million residues through 3B: about 5 minutes at 70,000 residues a second, 100 on a slow GPU."""
    assert 8_000 <= embed_memory_mb(MODEL_3B, USUAL) <= 20_000
    assert 60 <= embed_minutes(MODEL_3B, USUAL) <= 180


def test_each_attempt_asks_for_more() -> None:
    memory = [embed_memory_mb(MODEL_3B, USUAL, attempt=attempt) for attempt in (1, 2, 3)]
    minutes = [embed_minutes(MODEL_3B, USUAL, attempt=attempt) for attempt in (1, 2, 3)]
    assert memory[1] >= 1.8 * memory[0]
    assert memory[2] >= 2.7 * memory[0]
    assert minutes[1] >= 1.9 * minutes[0]
    assert minutes[2] >= 3.8 * minutes[0]


@pytest.mark.parametrize("kind", ["memory", "minutes"])
def test_larger_models_ask_for_no_less(kind: str) -> None:
    def ask(model: Architecture) -> int:
        return embed_memory_mb(model, USUAL, gpus=0) if kind == "memory" else embed_minutes(model, USUAL)

    asked = [ask(model) for model in ESM2_MODELS.values()]
    assert asked == sorted(asked)
    assert asked[-1] > asked[0]


def test_memory_covers_what_is_held() -> None:
    proteins = chunk([200] * 1_000_000)
    vectors = 4 * 1_000_000 * MODEL_3B.embed_dim / 1e6  # MB of one layer's means
    assert embed_memory_mb(MODEL_3B, proteins) > 3 * vectors
    batch = 4 * 32_768 * MODEL_3B.embed_dim / 1e6
    alone = embed_memory_mb(MODEL_3B, proteins, vectors=0)
    residues = [embed_memory_mb(MODEL_3B, proteins, vectors=0, per_residue=True, layers=n) - alone for n in (1, 2)]
    assert 6 * batch < residues[0] < 12 * batch + 1000, "residues stream, so that a few batches of them are held"
    assert residues[1] > 12 * batch
    few = chunk([200] * 50)
    assert embed_memory_mb(MODEL_3B, few, per_residue=True) <= embed_memory_mb(MODEL_3B, few) + 1000
    weights = 4 * MODEL_3B.parameters / 1e6
    assert embed_memory_mb(MODEL_3B, few, gpus=0) > weights


def test_time_by_devices() -> None:
    assert embed_minutes(MODEL_3B, USUAL, gpus=4) < embed_minutes(MODEL_3B, USUAL, gpus=1)
    assert embed_minutes(MODEL_3B, USUAL, gpus=0, threads=8) > embed_minutes(MODEL_3B, USUAL)
    assert embed_minutes(MODEL_3B, chunk([1])) >= 15


def test_time_follows_what_is_run_of_long_proteins() -> None:
    """Ten million residues in proteins of 10,000: windows run nearly twice as many, truncation a tenth."""
    minutes = {
        policy: embed_minutes(MODEL_3B, chunk([10_000] * 1_000, policy)) - START_MINUTES
        for policy in ("truncate", "full", "window")
    }
    assert minutes["window"] > 1.5 * embed_minutes(MODEL_3B, chunk([500] * 20_000)) - 1.5 * START_MINUTES
    assert minutes["truncate"] < 0.25 * minutes["window"]
    assert minutes["full"] > 1.5 * embed_minutes(MODEL_3B, chunk([500] * 20_000)) - 1.5 * START_MINUTES
