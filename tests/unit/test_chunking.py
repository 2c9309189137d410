"""Splitting: equal sequences once, chunks of equal cost in input order, and an index that finds every record."""

from __future__ import annotations

import gzip
import hashlib
import heapq
import logging
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.splitting import split_proteins
from virnucpro.base.digest import digest_of_digests, residue_digest
from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record
from virnucpro.base.settings import InputPolicies, LongProteins
from virnucpro.chunking.cost import assign_chunks, protein_costs
from virnucpro.chunking.index import read_index
from virnucpro.chunking.manifest import ChunkManifest, read_split
from virnucpro.chunking.size import chunk_count
from virnucpro.chunking.split import SplitCounts
from virnucpro.engine.batch import cut_into_pieces
from virnucpro.sequences.fasta import read_fasta
from virnucpro.sequences.intake import first_of

LETTERS = "LAGVSERTIDPKQNFYMHWC"


def write_fasta(path: Path, records: Sequence[tuple[str, str]]) -> Path:
    path.write_text("".join(f">{name} d\n{sequence}\n" for name, sequence in records), encoding="utf-8")
    return path


def some_records(n: int, seed: int = 0, longest: int = 60) -> list[tuple[str, str]]:
    chance = random.Random(seed)
    pool = ["".join(chance.choices(LETTERS, k=chance.randint(1, longest))) for _ in range(max(1, 2 * n // 3))]
    return [(f"p/{seed}|{i}", chance.choice(pool)) for i in range(n)]


def check(inputs: Sequence[Path], folder: Path, counts: SplitCounts) -> None:
    """Every promise about the outputs, tested on them."""
    records = [record for path in inputs for record in read_fasta(path)]
    index = list(read_index(folder / "index", batch_rows=7))
    assert [i for rows in index for i in rows.ids] == [record.id for record in records]
    assert [n for rows in index for n in rows.length.tolist()] == [len(record.sequence) for record in records]
    assert [n for rows in index for n in rows.replaced.tolist()] == [record.replaced for record in records]
    assert b"".join(rows.digest.tobytes() for rows in index) == b"".join(residue_digest(r.sequence) for r in records)
    chunks = sorted((folder / "chunks").glob("*.fasta"))
    assert [chunk.stem for chunk in chunks] == [f"chunk_{i:05d}" for i in range(counts.chunks)]
    embedded = [list(read_fasta(chunk)) for chunk in chunks]
    places = [(c, r) for rows in index for c, r in zip(rows.chunk.tolist(), rows.row.tolist(), strict=True)]
    assert [embedded[c][r].sequence for c, r in places] == [record.sequence for record in records]
    # Each sequence once, in the order of first occurrence, under the id of first occurrence.
    first: dict[bytes, str] = {}
    for record in records:
        first.setdefault(record.sequence, record.id)
    assert [(r.sequence, r.id) for chunk in embedded for r in chunk] == list(first.items())
    split = read_split(folder / "chunks")
    (own,) = split.samples.values()
    assert own.inputs == tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs)
    assert own.counts == asdict(counts)
    assert own.chunks == tuple(range(counts.chunks))
    for chunk, rows, digest in zip(chunks, embedded, split.chunks.values(), strict=True):
        manifest = read_record(chunk.with_suffix(".json"), ChunkManifest)
        assert manifest.chunk == chunk.stem
        assert manifest.proteins == len(rows)
        assert manifest.residues == sum(len(record.sequence) for record in rows)
        assert manifest.digest == digest.digest == digest_of_digests(residue_digest(record.sequence) for record in rows)
    assert counts.records == len(records)
    assert counts.unique == len(first)
    assert counts.residues == sum(len(record.sequence) for record in records)
    assert counts.unique_residues == sum(map(len, first))
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("chunk_residues", [1, 100, 1000, 10**9])
def test_two_files_of_a_sample(tmp_path: Path, chunk_residues: int) -> None:
    one = write_fasta(tmp_path / "one.faa", some_records(80, 1))
    two = tmp_path / "two.faa.gz"
    two.write_bytes(gzip.compress(b"".join(b">x%s\n%s\n" % (n.encode(), s.encode()) for n, s in some_records(90, 1))))
    counts = split_proteins([one, two], tmp_path / "index", tmp_path / "chunks", chunk_residues=chunk_residues)
    check([one, two], tmp_path, counts)
    assert counts.records == 170


@settings(max_examples=60)
@given(
    sequences=st.lists(
        st.text("MKjvX*.-", min_size=1, max_size=12).filter(lambda s: s.removesuffix("*").strip(".-")),
        min_size=1,
        max_size=30,
    ),
    chunk_residues=st.integers(1, 60),
    multiple_of=st.integers(1, 4),
)
def test_any_input(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[str], chunk_residues: int, multiple_of: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    path = write_fasta(folder / "in", [(f"é|{i}", sequence) for i, sequence in enumerate(sequences)])
    options: dict[str, Any] = {"chunk_residues": chunk_residues, "embed_dim": 8, "multiple_of": multiple_of}
    options["policies"] = InputPolicies(suspicious="accept")
    check([path], folder, split_proteins([path], folder / "index", folder / "chunks", **options))


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "in", some_records(100))
    for name in ("a", "b"):
        split_proteins([path], tmp_path / name / "index", tmp_path / name / "chunks", chunk_residues=300)
    files = [sorted((tmp_path / name).rglob("*.*")) for name in ("a", "b")]
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    assert len(files[0]) > 10
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


def test_an_older_split_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "in", some_records(50))
    split_proteins([path], tmp_path / "index", tmp_path / "chunks", chunk_residues=50)
    counts = split_proteins([path], tmp_path / "index", tmp_path / "chunks", chunk_residues=10**6)
    assert counts.chunks == 1
    check([path], tmp_path, counts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([">a\nMK\n>b\nMK\n>a\nLL\n"], r"one, line 5: the id 'a' was already used in .*one, line 1; give every record"),
        (
            [">a\nMK\n", ">b\nMK\n\n>a\nMK\n>b\nK\n"],
            r"two, line 4: the id 'a' .* in .*one, line 1 \(2 records repeat an id",
        ),
        ([">a\nMK\n", ""], r"two is empty"),
        ([">a\nMK\n", ">b\nM2\n"], r"two, line 2: '2' in record 'b'"),
    ],
)
def test_mistakes_are_one_clear_sentence_and_nothing_is_written(tmp_path: Path, texts: list[str], message: str) -> None:
    inputs = [tmp_path / name for name in ("one", "two")][: len(texts)]
    for path, text in zip(inputs, texts, strict=True):
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        split_proteins(inputs, tmp_path / "out" / "index", tmp_path / "out" / "chunks", chunk_residues=10)
    assert not (tmp_path / "out").exists()


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "in", some_records(3))
    for inputs, message in (([path, tmp_path / "none"], "there is no such file"), ([], "no FASTA file was given")):
        with pytest.raises(UserError, match=message):
            split_proteins(inputs, tmp_path / "index", tmp_path / "chunks", chunk_residues=10)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_what_became_x_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_fasta(tmp_path / "in", [("a", "MJ*K"), ("b", "MK*"), ("c", "JJ")])
    with caplog.at_level(logging.INFO):
        counts = split_proteins([path], tmp_path / "index", tmp_path / "chunks", chunk_residues=10)
    assert (counts.replaced, counts.replaced_records) == (4, 2)
    assert "4 residues (inner '*' or 'J') in 2 records have no token and became X" in caplog.text


def test_a_file_that_changes_while_it_is_read_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from virnucpro.chunking import split

    path = write_fasta(tmp_path / "in", some_records(20))
    plan = split._plan

    def meanwhile(*given: object) -> object:
        write_fasta(path, [*some_records(20), ("new", "MKV")])
        return plan(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(split, "_plan", meanwhile)
    with pytest.raises(UserError, match="changed while being read"):
        split_proteins([path], tmp_path / "index", tmp_path / "chunks", chunk_residues=10)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_the_index_opens_with_pandas(tmp_path: Path) -> None:
    import pandas as pd

    path = write_fasta(tmp_path / "in", some_records(30))
    split_proteins([path], tmp_path / "index", tmp_path / "chunks", chunk_residues=100)
    table = pd.read_parquet(tmp_path / "index")
    assert table.columns.tolist() == ["id", "length", "digest", "chunk", "row", "replaced", "description"]
    assert table.digest[0] == residue_digest(next(read_fasta(path)).sequence)
    assert str(pq.read_schema(tmp_path / "index").field("digest").type) == "fixed_size_binary[16]"


# Costs and balance


@settings(max_examples=100)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=50))
def test_first_of_finds_the_first_equal_digest(values: list[int]) -> None:
    """Digests that share their first half are told apart by their second."""
    digests = np.array([[v % 3] * 8 + [v // 3] * 8 for v in values], np.uint8)
    assert first_of(digests).tolist() == [values.index(v) for v in values]


def test_costs_are_the_operations_of_the_model() -> None:
    """24 d^2 + 4 T d operations a token and layer, for the tokens that really run, over 24 d^2."""
    lengths = np.array([1, 300, 1022, 1023, 1533, 1534, 7000, 34350])
    for policy in ("full", "truncate", "window"):
        for longest, overlap in ((1022, 511), (1022, 0), (100, 99)):
            pieces = cut_into_pieces(lengths, LongProteins(policy, longest, overlap))
            tokens = pieces.length + 2
            each = tokens * (24 * 2560**2 + 4 * tokens * 2560) / (24 * 2560**2)
            wanted = np.bincount(pieces.row, each, len(lengths))
            found = protein_costs(lengths, embed_dim=2560, long_proteins=LongProteins(policy, longest, overlap))
            np.testing.assert_allclose(found, wanted, rtol=1e-12)


def skewed_lengths(seed: int, n: int = 40_000) -> NDArray[np.int64]:
    """A metagenome's many short proteins and a tail of polyproteins, sorted: the worst order for contiguous chunks."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(5.2, 0.9, n)).astype(np.int64) + 1
    lengths[:200] = rng.integers(3000, 35_000, 200)
    return np.sort(lengths)


def ends_of(costs: Sequence[float], gpus: int) -> list[float]:
    """When each of N equal GPUs ends that takes the next chunk as soon as it is free."""
    free = [0.0] * gpus
    for cost in costs:
        heapq.heappush(free, heapq.heappop(free) + cost)
    return free


@pytest.mark.parametrize("gpus", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("policy", ["window", "full"])
def test_the_slowest_of_equal_gpus_is_within_five_per_cent(gpus: int, policy: str) -> None:
    lengths = skewed_lengths(gpus)
    costs = protein_costs(lengths, embed_dim=2560, long_proteins=LongProteins(policy))
    count = chunk_count(int(lengths.sum()), len(lengths), 500_000, multiple_of=gpus)
    chunk = assign_chunks(costs, count)
    ends = ends_of(np.bincount(chunk, costs).tolist(), gpus)
    assert max(ends) <= 1.05 * np.mean(ends)
    # The same test on chunks of equal numbers of proteins fails: it can tell.
    by_number = np.arange(len(costs)) * count // len(costs)
    ends = ends_of(np.bincount(by_number, costs).tolist(), gpus)
    assert max(ends) > 1.05 * np.mean(ends)


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=60), st.integers(1, 70))
def test_chunks_are_contiguous_without_gaps_and_off_by_one_protein_at_most(costs: list[float], count: int) -> None:
    values = np.array(costs)
    chunk = assign_chunks(values, count)
    assert chunk[0] == 0
    assert set(np.diff(chunk).tolist()) <= {0, 1}
    assert chunk[-1] < count
    share = values.sum() / count
    assert np.bincount(chunk, values).max() <= share + values.max() * (1 + 1e-9)


def test_the_number_of_chunks() -> None:
    assert chunk_count(0, 0, 100) == 1
    assert chunk_count(100, 9, 100) == 1
    assert chunk_count(101, 9, 100) == 2
    assert chunk_count(10**6, 9, 1) == 9  # no more than proteins
    assert chunk_count(1300, 999, 100, multiple_of=8) == 16
    assert chunk_count(1300, 999, 100, multiple_of=1) == 13
    assert chunk_count(50, 999, 100, multiple_of=8) == 1  # eight would be a sixteenth of what is asked for
    assert chunk_count(90, 999, 100, multiple_of=8) == 8
