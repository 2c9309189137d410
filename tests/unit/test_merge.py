"""Merge: every id that came in comes out, in order, with the vector of its own residues; bad chunk files are named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sample import Sample, write_input
from tests.unit.stub_chunks import stub_vectors, write_stub_chunk
from virnucpro.base.errors import UserError
from virnucpro.base.records import from_entries, parse_record
from virnucpro.sequences.fasta import read_fasta
from virnucpro.storage import merge as merge_module
from virnucpro.storage.chunk_file import read_chunk_file
from virnucpro.storage.chunk_writer import write_chunk_file
from virnucpro.storage.merge import merge_embeddings
from virnucpro.storage.report_record import Provenance
from virnucpro.storage.tables import read_embeddings, read_residues
from virnucpro.storage.tables.rows import Rows


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    write_input(tmp_path / "in.faa")
    return tmp_path / "in.faa"


FORMATS = ("parquet", "hdf5", "virnucpro_pt", "npy", "chunk_files")


@pytest.mark.parametrize("batch_bytes", [merge_module.BATCH_BYTES, 200])
def test_every_id_comes_out_in_order_with_its_own_vector(
    tmp_path: Path, batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = write_input(tmp_path / "in.faa", 200)
    sample = Sample(tmp_path, tmp_path / "in.faa")
    assert len(sample.fastas) > 5
    monkeypatch.setattr(merge_module, "BATCH_BYTES", batch_bytes)
    counts = sample.merge(*FORMATS, records_per_file=7)
    assert counts.records == 200
    assert counts.unique == len({residues for _, residues in records}) < 200
    wanted = np.concatenate([stub_vectors(residues, 1, 8, 6) for _, residues in records])
    for name in FORMATS:
        ids, matrix = read_embeddings(tmp_path / name)
        assert ids == [record_id for record_id, _ in records], name
        np.testing.assert_array_equal(matrix, wanted, err_msg=name)
        assert read_embeddings(tmp_path / name, layer=6).ids == ids
        with pytest.raises(UserError, match="embedding_5"):
            read_embeddings(tmp_path / name, layer=5)


HEADER = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(
    lambda text: text.split(" ", 1)[0] != ""
)
SEQUENCE = st.text("MKLjx*.-VA \t", min_size=1, max_size=9).filter(
    lambda text: text.strip().removesuffix("*").strip("-. \t") != ""
)


@settings(max_examples=60, deadline=None)
@given(
    headers=st.lists(HEADER, min_size=1, max_size=12, unique_by=lambda text: text.split(" ", 1)[0]),
    sequences=st.lists(SEQUENCE, min_size=12, max_size=12),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_ids_and_residues(
    tmp_path_factory: pytest.TempPathFactory, headers: list[str], sequences: list[str], end: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    text = "".join(f">{header}{end}{sequence}{end}" for header, sequence in zip(headers, sequences, strict=False))
    (folder / "in.faa").write_bytes(text.encode())
    Sample(folder, folder / "in.faa", chunk_residues=10).merge("parquet", "hdf5", "npy")
    for name in ("parquet", "hdf5", "npy"):
        ids, matrix = read_embeddings(folder / name)
        assert ids == [header.split(" ", 1)[0] for header in headers]
        for row, record in zip(matrix, read_fasta(folder / "in.faa"), strict=True):
            np.testing.assert_array_equal(row, stub_vectors(record.sequence, 1, 8, 6)[0])


@pytest.mark.parametrize("batch_bytes", [merge_module.BATCH_BYTES, 700])
def test_several_layers_and_every_residue(tmp_path: Path, batch_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    records = write_input(tmp_path / "in.faa", 50)
    sample = Sample(tmp_path, tmp_path / "in.faa", layers=(0, 6), pooling=("mean", "per_residue"))
    monkeypatch.setattr(merge_module, "BATCH_BYTES", batch_bytes)
    formats = ("parquet", "hdf5", "npy", "chunk_files")
    sample.merge(*formats, expected={"layers": "[0,6]", "pooling": '["mean","per_residue"]'})
    for name in formats:
        for layer in (0, 6):
            ids, matrix = read_embeddings(tmp_path / name, layer)
            assert ids == [record_id for record_id, _ in records]
            wanted = np.concatenate([stub_vectors(residues, 1, 8, layer) for _, residues in records])
            np.testing.assert_array_equal(matrix, wanted)
            ids, values, offsets = read_residues(tmp_path / name, layer)
            assert ids == [record_id for record_id, _ in records]
            assert np.diff(offsets).tolist() == [len(residues) for _, residues in records]
            parts = [stub_vectors(residues, len(residues), 8, layer) for _, residues in records]
            np.testing.assert_array_equal(values, np.concatenate(parts))
        with pytest.raises(UserError, match="name a layer"):
            read_embeddings(tmp_path / name)


def test_residues_alone(tmp_path: Path, fasta: Path) -> None:
    sample = Sample(tmp_path, fasta, pooling=("per_residue",))
    sample.merge("parquet", "hdf5", "npy", "chunk_files", expected={"pooling": '["per_residue"]'})
    for name in ("parquet", "hdf5", "npy", "chunk_files"):
        ids, values, offsets = read_residues(tmp_path / name)
        assert len(values) == offsets[-1] == sample.counts.residues
        assert len(ids) == sample.counts.records
        with pytest.raises(UserError, match="none of that kind"):
            read_embeddings(tmp_path / name)
    tables_are_proven(tmp_path)
    with pytest.raises(UserError, match="virnucpro_pt holds one mean vector"):
        sample.merge("virnucpro_pt", expected={"pooling": '["per_residue"]'})


def test_what_was_done_to_whom_is_recorded(tmp_path: Path) -> None:
    import pandas as pd

    (tmp_path / "in.faa").write_text(">short\nMK*V\n>long\n" + "MKVA" * 3 + "\n>same\nMKXV\n")
    for policy, word in (("window", "windows:2"), ("truncate", "truncated:10"), ("full", "whole")):
        sample = Sample(tmp_path / policy, tmp_path / "in.faa", longest=10, policy=policy)
        counts = sample.merge("parquet")
        assert (counts.windowed, counts.truncated) == (policy == "window", policy == "truncate")
        table = pd.read_parquet(tmp_path / policy / "parquet")
        assert table.treatment.tolist() == ["whole", word, "whole"]
        assert table.length.tolist() == [4, 12, 4]
        assert table.replaced.tolist() == [1, 0, 0]
        assert table.precision.tolist() == ["float16", "float32", "float16"]


def test_the_report_and_every_table_say_where_the_numbers_come_from(tmp_path: Path, fasta: Path) -> None:
    import h5py
    import pyarrow.parquet as pq

    sample = Sample(tmp_path, fasta, demo="true")
    sample.merge(*FORMATS)
    report = json.loads((tmp_path / "report.json").read_text())
    origin = report["provenance"]
    assert origin["model"] == "esm2_stub"
    assert origin["weights_sha256"] == "5" * 64  # stays text, though it reads as a number
    assert origin["layers"] == [6]
    assert origin["attention_kernel"] == {"sdpa": sample.counts.unique}
    assert origin["versions"] == [{"virnucpro": "0", "torch": "2.13.0"}]
    assert origin["command"] == "a test"
    assert "mean nothing" in origin["warning"]
    assert sum(origin["precisions"].values()) == sample.counts.unique
    assert [chunk["chunk"] for chunk in report["chunks"]] == [chunk.stem for chunk in sample.fastas]
    assert report["chunks"][0]["statistics"]["seconds"] == 1.5
    texts = [pq.read_schema(tmp_path / "parquet").metadata[b"virnucpro"].decode()]
    with h5py.File(tmp_path / "hdf5") as file:
        texts.append(file.attrs["virnucpro"])
    texts += [(tmp_path / folder / "provenance.json").read_text() for folder in ("virnucpro_pt", "npy")]
    for text in texts:
        assert asdict(parse_record(text, Provenance, tmp_path)) == asdict(from_entries(origin, Provenance, tmp_path))
    assert list(report["tables"]) == list(FORMATS)
    tables_are_proven(tmp_path)


def tables_are_proven(folder: Path) -> None:
    """Each file of each table is in the report, with its size and sha256."""
    for name, files in json.loads((folder / "report.json").read_text())["tables"].items():
        for file, proof in files.items():
            content = (folder / file).read_bytes()
            assert proof == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}, file
            assert file.startswith((name, "tensors/") if name == "chunk_files" else name)
        made = [path for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
        assert {str(path.relative_to(folder)) for path in made} <= files.keys()


def test_missing_chunk_files_are_named_and_nothing_is_written(tmp_path: Path, fasta: Path) -> None:
    sample = Sample(tmp_path, fasta)
    sample.tensors[1].unlink()
    with pytest.raises(
        UserError, match=r"1 of \d+ chunk files are missing \(.*chunk_00001.safetensors\); run the same"
    ):
        sample.merge(*FORMATS)
    sample.tensors[0].unlink()
    with pytest.raises(UserError, match=r"2 of \d+ .*chunk_00000\.safetensors"):
        sample.merge(*FORMATS)
    assert not any((tmp_path / name).exists() for name in (*FORMATS, "report.json"))
    assert not list(tmp_path.glob(".*"))


def test_all_bad_chunk_files_are_named_at_once_and_renamed(tmp_path: Path, fasta: Path) -> None:
    sample = Sample(tmp_path, fasta, chunk_residues=80)
    cut, flipped, foreign, stale, swapped, unit = sample.tensors[:6]
    cut.write_bytes(cut.read_bytes()[:-3])
    raw = bytearray(flipped.read_bytes())
    raw[-9] ^= 4
    flipped.write_bytes(raw)
    write_stub_chunk(sample.fastas[2], foreign, weights_sha256="6" * 64)
    other = tmp_path / "other"
    write_input(tmp_path / "other.faa", seed=9)
    other_sample = Sample(other, tmp_path / "other.faa", chunk_residues=80)
    stale.write_bytes(other_sample.tensors[3].read_bytes())
    swapped.write_bytes(unit.read_bytes())
    with pytest.raises(UserError) as caught:
        sample.merge()
    text = str(caught.value)
    assert "5 chunk files are bad" in text
    assert "run the same command again" in text
    for path, reason in (
        (cut, "cut short"),
        (flipped, "damaged"),
        (foreign, "weights_sha256"),
        (stale, "other sequences"),
    ):
        assert f"{path}: " in text
        assert reason in text
        assert not path.exists()
        assert path.with_name(path.name + ".bad").exists()
    assert f"{swapped}: it was made with chunk chunk_00005" in text
    assert unit.exists()
    assert not (tmp_path / "parquet").exists()
    for chunk in sample.fastas[:5]:
        write_stub_chunk(chunk, sample.tensor(chunk.stem))
    assert sample.merge().records == sample.counts.records


@pytest.mark.parametrize("tensor", ["mean.6", "residues.6", "starts", "embedded", "precision", "lengths", "windows"])
def test_a_flipped_bit_is_found_wherever_it_is_met(tmp_path: Path, fasta: Path, tensor: str) -> None:
    """Tables are written while chunk files are verified: what the bit does to their numbers is not the reason given."""
    sample = Sample(tmp_path, fasta, pooling=("mean", "per_residue"))
    path = sample.tensors[1]
    dtype, shape, offset = read_chunk_file(path).layout[tensor]
    raw = bytearray(path.read_bytes())
    raw[offset + dtype.itemsize * (int(np.prod(shape)) // 2)] ^= 64
    path.write_bytes(raw)
    formats = ("parquet", "hdf5", "npy", "chunk_files")
    with pytest.raises(UserError, match=rf"^1 chunk file is bad \({path}: its bytes do not give its checksum"):
        sample.merge(*formats, expected={"pooling": '["mean","per_residue"]'})
    assert path.with_name(path.name + ".bad").exists()
    assert not any((tmp_path / name).exists() for name in (*formats, "report.json"))
    assert not list(tmp_path.glob(".*"))


def test_a_file_with_right_digests_in_the_wrong_order_is_found(tmp_path: Path, fasta: Path) -> None:
    """Even a file whose checksum is right is not believed: rows are compared with the index."""
    sample = Sample(tmp_path, fasta)
    chunk = sample.fastas[0]
    lines = chunk.read_text().splitlines()
    chunk.write_text("\n".join(lines[2:4] + lines[:2] + lines[4:]) + "\n")
    write_stub_chunk(chunk, sample.tensors[0])
    with pytest.raises(UserError, match=r"chunk_00000\.safetensors: it was made of other sequences"):
        sample.merge()


def test_chunks_that_disagree_with_each_other_are_found(tmp_path: Path, fasta: Path) -> None:
    sample = Sample(tmp_path, fasta)
    write_stub_chunk(sample.fastas[1], sample.tensors[1], precision="fp32")
    folders = (tmp_path / "chunks", tmp_path / "tensors")
    with pytest.raises(
        UserError, match=r"chunk_00001\.safetensors: it was made with precision fp32, the others with auto"
    ):
        merge_embeddings(sample.index, *folders, {}, tmp_path / "report", expected={})


def test_values_beyond_float16_are_refused_not_made_infinite(tmp_path: Path, fasta: Path) -> None:
    sample = Sample(tmp_path, fasta)
    sample.merge("parquet", "npy", "hdf5", dtype="float16")
    for name in ("parquet", "npy", "hdf5"):
        matrix = read_embeddings(tmp_path / name).matrix
        assert matrix.dtype == np.float16
        wanted = np.concatenate([stub_vectors(r.sequence, 1, 8, 6) for r in read_fasta(fasta)])
        np.testing.assert_array_equal(matrix, wanted.astype(np.float16))
    values = np.zeros((3, 4), np.float32)
    values[2, 1] = 1e5
    ones = np.ones(3, np.int32)
    rows = Rows(
        ["a", "b", "c"], ones, ["whole"] * 3, ["float32"] * 3, ones, {6: values}, {6: values}, np.array([0, 1, 1, 3])
    )
    for kind in ("mean", "residues"):
        with pytest.raises(UserError, match=r"the embedding of 'c' .* float16 cannot hold; set merge dtype to float32"):
            rows.values(kind, 6, "float16")


def test_an_index_that_is_not_what_the_split_wrote_is_one_clear_error(tmp_path: Path, fasta: Path) -> None:
    sample = Sample(tmp_path, fasta)
    raw = sample.index.read_bytes()
    for content in (raw[: len(raw) // 2], raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]):
        sample.index.write_bytes(content)
        with pytest.raises(UserError, match=r"proteins\.parquet is not what the split wrote, so it was damaged"):
            sample.merge()


def test_many_chunks_do_not_run_out_of_open_files(tmp_path: Path, fasta: Path) -> None:
    import resource

    sample = Sample(tmp_path, fasta, chunk_residues=1)
    assert len(sample.fastas) > 30
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    from virnucpro.storage import row_reader as gather

    before, gather.OPEN_FILES = gather.OPEN_FILES, 4
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, limits[1]))
    try:
        assert sample.merge("parquet").records == 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        gather.OPEN_FILES = before


def test_unknown_formats_and_files_are_one_clear_error(tmp_path: Path, fasta: Path) -> None:
    with pytest.raises(UserError, match=r"unknown table formats \['csv'\]"):
        Sample(tmp_path, fasta).merge("csv")
    for path in (tmp_path / "nothing", tmp_path, fasta):
        with pytest.raises(UserError, match=str(path)):
            read_embeddings(path)


@pytest.mark.parametrize(
    ("tensor", "place", "value", "sentence"),
    [
        ("mean.6", (0, 3), np.nan, "numbers that are not finite"),
        ("mean.6", (1, 0), -np.inf, "numbers that are not finite"),
        ("residues.6", (2, 2), np.inf, "numbers that are not finite"),
        ("starts", (1,), 10**12, "do not fit its residues"),
        ("starts", (0,), -1, "do not fit its residues"),
        ("embedded", (1,), -3, "do not fit its residues"),
        ("starts", (1,), 2**63 - 1, "do not fit its residues"),
    ],
)
def test_values_that_no_job_writes_are_refused(
    tmp_path: Path, fasta: Path, tensor: str, place: tuple[int, ...], value: float, sentence: str
) -> None:
    """A whole file of right checksum, whose numbers are wrong."""
    sample = Sample(tmp_path, fasta, pooling=("mean", "per_residue"))
    chunk = read_chunk_file(sample.tensors[0])
    tensors = {name: chunk.read(name) for name in chunk.names}
    tensors[tensor][place] = value
    metadata = {key: text for key, text in chunk.metadata.items() if key not in ("format", "checksum")}
    write_chunk_file(sample.tensors[0], tensors, metadata)
    with pytest.raises(UserError, match=sentence):
        sample.merge("parquet", expected={"pooling": '["mean","per_residue"]'})
    assert not (tmp_path / "parquet").exists()


def test_a_width_unlike_the_models_is_refused(tmp_path: Path, fasta: Path) -> None:
    sample = Sample(tmp_path, fasta)
    chunk = read_chunk_file(sample.tensors[0])
    tensors = {name: chunk.read(name) for name in chunk.names}
    metadata = {key: text for key, text in chunk.metadata.items() if key not in ("format", "checksum")}
    write_chunk_file(sample.tensors[0], {**tensors, "mean.6": tensors["mean.6"][:, :4]}, metadata)
    with pytest.raises(UserError, match=r"'mean\.6' is 4 wide, and its model 8"):
        sample.merge()
