"""A chunk file's metadata: what is written is read again, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from virnucpro.base.records import RecordError
from virnucpro.base.settings import LongProteins
from virnucpro.storage.chunk_metadata import (
    ChunkMetadata,
    ChunkSource,
    DeviceRun,
    EmbeddingIdentity,
    RunStatistics,
)

PATH = Path("tensors/chunk_00001.safetensors")
METADATA = ChunkMetadata(
    source=ChunkSource("chunk_00001", "0" * 32, source_sha256="7" * 64, model_layers=36, demo=True),
    identity=EmbeddingIdentity(
        model="[odd] name",
        weights_sha256="5" * 64,
        embed_dim=2560,
        layers=(0, 36),
        pooling=("mean", "per_residue"),
        precision="auto",
        long_proteins=LongProteins("window", 1022, 511),
    ),
    run=DeviceRun(
        precisions=("float16", "float32"),
        attention="flash_attention_2",
        attention_kernel="triton",
        device="NVIDIA H100",
        layers_run="fused",
        versions={"torch": "2.13.0"},
        statistics=RunStatistics(2, 500, 504, 2.0, 1.5, 0.25, 1 << 33, 0, 1),
    ),
)


def test_what_is_written_is_read_again() -> None:
    entries = METADATA.to_entries()
    assert all(isinstance(value, str) for value in entries.values())
    assert entries["layers"] == "[0, 36]"
    assert entries["model"] == "[odd] name"
    assert ChunkMetadata.from_entries({**entries, "format": "virnucpro-chunk-1"}, PATH) == METADATA
    assert METADATA.run.statistics.tokens_per_second == 252


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("layers", "[0, true]"),
        ("layers", "36"),
        ("layers", "[" * 100_000),
        ("statistics", "{}"),
        ("statistics", '{"proteins": 1e999}'),
        ("demo", "maybe"),
        ("versions", '{"torch": 2}'),
        ("precisions", f'["{"x" * (1 << 21)}"]'),
        ("model", "x" * (1 << 21)),
        ("model_layers", "1.5"),
        ("model_layers", "9" * 5000),
        ("embed_dim", "true"),
        ("chunk", None),
        ("device", None),
    ],
)
def test_a_wrong_entry_is_named(name: str, text: str | None) -> None:
    entries = {key: value for key, value in METADATA.to_entries().items() if key != name}
    if text is not None:
        entries[name] = text
    with pytest.raises(RecordError, match=r"chunk_00001\.safetensors") as raised:
        ChunkMetadata.from_entries(entries, PATH)
    assert len(str(raised.value)) < 300
