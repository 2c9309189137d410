"""The Parquet table, opened with the programs that users open it with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.sample import Sample, write_input
from tests.unit.stub_chunks import stub_vectors
from virnucpro.base.digest import FileProof
from virnucpro.storage import merge
from virnucpro.storage.tables import parquet
from virnucpro.storage.tables.parquet_footer import WrittenFile, moved

COLUMNS = ["id", "length", "description", "treatment", "precision", "origin", "replaced", "embedding"]


def rows_of(query: str) -> list[Any]:
    return duckdb.execute(query).fetchall()


def merged(folder: Path, dtype: str = "float32") -> tuple[Path, list[str], np.ndarray]:
    records = write_input(folder / "in.faa")
    Sample(folder, folder / "in.faa").merge("parquet", dtype=dtype)
    wanted = np.concatenate([stub_vectors(residues, 1, 8, 6) for _, residues in records]).astype(dtype)
    return folder / "parquet", [name for name, _ in records], wanted


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pandas(tmp_path: Path, dtype: str) -> None:
    path, ids, wanted = merged(tmp_path, dtype)
    table = pd.read_parquet(path)
    assert table.columns.tolist() == COLUMNS
    assert table.id.tolist() == ids
    matrix = np.stack(table.embedding.tolist())
    assert matrix.dtype == dtype
    np.testing.assert_array_equal(matrix, wanted)
    assert pd.read_parquet(path, columns=["id", "length"]).shape == (60, 2)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_polars(tmp_path: Path, dtype: str) -> None:
    path, ids, wanted = merged(tmp_path, dtype)
    table = pl.read_parquet(path)
    assert table.columns == COLUMNS
    assert table["id"].to_list() == ids
    assert isinstance(table.schema["embedding"], pl.Array)
    np.testing.assert_array_equal(table["embedding"].to_numpy(), wanted)
    assert pl.scan_parquet(path).filter(pl.col("id") == "Ω").select("length").collect().shape == (1, 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_duckdb(tmp_path: Path, dtype: str) -> None:
    path, ids, wanted = merged(tmp_path, dtype)
    rows = rows_of(f"SELECT id, length, embedding FROM read_parquet('{path}')")
    assert [row[0] for row in rows] == ids
    np.testing.assert_array_equal(np.array([row[2] for row in rows], dtype), wanted)
    assert rows_of(f"SELECT count(*) FROM read_parquet('{path}') WHERE treatment = 'whole'") == [(60,)]


def test_types_and_provenance(tmp_path: Path) -> None:
    path, _, _ = merged(tmp_path)
    schema = pq.read_schema(path)
    assert str(schema.field("embedding").type) == "fixed_size_list<element: float not null>[8]"
    origin = json.loads(schema.metadata[b"virnucpro"])
    assert origin["model"] == "esm2_stub"
    rows = rows_of(f"SELECT count(*) FROM parquet_kv_metadata('{path}') WHERE key = 'virnucpro'")
    assert rows == [(1,)]


def test_several_layers(tmp_path: Path) -> None:
    records = write_input(tmp_path / "in.faa")
    Sample(tmp_path, tmp_path / "in.faa", layers=(0, 3, 6)).merge("parquet", expected={"layers": "[0, 3, 6]"})
    table = pd.read_parquet(tmp_path / "parquet")
    assert table.columns.tolist() == [*COLUMNS[:-1], "embedding_0", "embedding_3", "embedding_6"]
    for layer in (0, 3, 6):
        wanted = np.concatenate([stub_vectors(residues, 1, 8, layer) for _, residues in records])
        np.testing.assert_array_equal(np.stack(table[f"embedding_{layer}"].tolist()), wanted)


@pytest.mark.parametrize("batch_bytes", [merge.BATCH_BYTES, 500])
def test_residues_are_lists_of_vectors(tmp_path: Path, batch_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one row group, and in many."""
    monkeypatch.setattr(merge, "BATCH_BYTES", batch_bytes)
    records = write_input(tmp_path / "in.faa", 20)
    expected = {"pooling": '["mean", "per_residue"]'}
    Sample(tmp_path, tmp_path / "in.faa", pooling=("mean", "per_residue")).merge("parquet", expected=expected)
    path = tmp_path / "parquet"
    assert str(pq.read_schema(path).field("residues").type) == (
        "large_list<element: fixed_size_list<element: float not null>[8] not null>"
    )
    by_pandas = [np.stack(matrix) for matrix in pd.read_parquet(path).residues]
    by_polars = [np.array(matrix, np.float32) for matrix in pl.read_parquet(path)["residues"].to_list()]
    rows = rows_of(f"SELECT residues FROM read_parquet('{path}')")
    by_duckdb = [np.array(row[0], np.float32) for row in rows]
    for i, (_, residues) in enumerate(records):
        wanted = stub_vectors(residues, len(residues), 8, 6)
        for found in (by_pandas[i], by_polars[i], by_duckdb[i]):
            np.testing.assert_array_equal(found, wanted)
    assert (pq.read_metadata(path).num_row_groups > 10) == (batch_bytes == 500)


def test_several_threads_write_the_file_that_arrow_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte: more row groups than threads, each of another size; offsets of one to four bytes."""
    monkeypatch.setattr(parquet, "usable_cores", lambda: 3)
    chance = np.random.default_rng(0)
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), 40)
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("treatment", pa.string(), nullable=False),
        pa.field("residues", pa.large_list(pa.field("element", vector, nullable=False)), nullable=False),
    ]
    schema = pa.schema(fields, metadata={b"virnucpro": b"{}" * 300})
    batches = []
    for n in (1, 2, 3, 70, 5, 6, 1000, 1):
        offsets = np.concatenate([[0], np.cumsum(chance.integers(0, 20, n))])
        values = chance.standard_normal(int(offsets[-1]) * 40, dtype=np.float32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), type=vector)
        residues = pa.LargeListArray.from_arrays(pa.array(offsets), vectors, type=fields[2].type)
        ids = pa.array([f"id{i}" for i in range(n)])
        batches.append(pa.record_batch([ids, pa.array(["whole"] * n), residues], schema=schema))
    options = {"compression": {"id": "zstd"}, "use_dictionary": ["treatment"], "write_statistics": ["id"]}
    with parquet.RowGroups(tmp_path / "ours", schema, **options) as file:
        for batch in batches:
            file.write(batch)
        proof = file.finish()
    with pq.ParquetWriter(tmp_path / "arrow", schema, **options) as writer:
        for batch in batches:
            writer.write_batch(batch, row_group_size=len(batch))
    assert proof == FileProof.of(tmp_path / "ours")
    assert pq.read_table(tmp_path / "ours").equals(pa.Table.from_batches(batches))
    # Arrow 16 left copies of the columns' metadata among the row groups, whose offsets nothing reads.
    if pq.read_metadata(tmp_path / "arrow").row_group(0).column(0).file_offset == 0:
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "arrow").read_bytes()


def test_a_row_group_beyond_four_gigabytes() -> None:
    """Offsets of five bytes and more, each column's; nothing else is changed."""
    out, by = WrittenFile(), 5_000_000_000
    table = pa.table({"id": ["a", "b"] * 50, "number": range(100)})
    with pq.ParquetWriter(out, table.schema, use_dictionary=["id"]) as writer:
        writer.write_table(table)
    before, after = (parquet._metadata(footer).to_dict() for footer in (out.split()[1], moved(out.split()[1], by)))
    for one, other in zip(before["row_groups"][0]["columns"], after["row_groups"][0]["columns"], strict=True):
        for name in ("data_page_offset", "dictionary_page_offset"):
            place, own = one.pop(name), other.pop(name)
            assert own == (place + by if place else place)
    del before["serialized_size"], after["serialized_size"]
    assert before == after


def test_a_row_group_that_is_not_where_it_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should Arrow write a footer that is not understood, no table comes of it."""
    monkeypatch.setattr(parquet, "moved", lambda footer, by: moved(footer, by + 1) if by else footer)
    monkeypatch.setattr(merge, "BATCH_BYTES", 200)
    write_input(tmp_path / "in.faa")
    sample = Sample(tmp_path, tmp_path / "in.faa")
    with pytest.raises(ValueError, match="is not where its row group is"):
        sample.merge("parquet")
    assert not (tmp_path / "parquet").exists()


def test_an_encoder_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "BATCH_BYTES", 200)
    write_input(tmp_path / "in.faa")
    sample = Sample(tmp_path, tmp_path / "in.faa")
    right, calls = parquet.RowGroups._encoded, iter(range(1000))

    def fails(self: parquet.RowGroups, batch: Any) -> Any:
        if next(calls) == 4:
            raise MemoryError
        return right(self, batch)

    monkeypatch.setattr(parquet.RowGroups, "_encoded", fails)
    with pytest.raises(MemoryError):
        sample.merge("parquet")
    assert not (tmp_path / "parquet").exists()
    assert not list(tmp_path.glob(".*"))
