"""What is fuzzed: for each kind of input how it is drawn, what reads it, and what must hold when it is accepted.

A target's ``run`` may end in a :class:`UserError` of one printable line, or in silence; anything else is a finding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from tests.fuzz import strangers
from tests.fuzz.drawing import SEEDS, Target, bombs, damaged
from tests.unit.stub_chunks import EXPECTED, stub_statistics
from virnucpro.base.digest import FileProof, digest_of_digests
from virnucpro.base.errors import UserError
from virnucpro.base.records import Record, parse_record, record_text
from virnucpro.base.settings import InputPolicies, LongProteins
from virnucpro.chunking.index import INDEX_SCHEMA, IndexRows, IndexWriter, read_index
from virnucpro.chunking.manifest import ChunkManifest, SampleSplit, SplitChunk, SplitRecord, SplitSettings
from virnucpro.config import load_config
from virnucpro.config_files import Source, read_file
from virnucpro.samples import find_samples
from virnucpro.sequences.fasta import estimate, read_fasta
from virnucpro.storage.chunk_file import read_chunk_file, verify_chunk
from virnucpro.storage.chunk_metadata import ChunkMetadata, RunStatistics
from virnucpro.storage.chunk_writer import write_chunk_file
from virnucpro.storage.report_record import ChunkRun, MergeCounts, Provenance, SampleReport

logging.getLogger("virnucpro").addHandler(logging.NullHandler())


# FASTA

LETTERS = ">ACDEFGHIKLMNPQRSTVWYXBZUOJ*-. \t;0\x00\xff\xc3\xa9"


def _fasta_text() -> st.SearchStrategy[bytes]:
    line_end = st.sampled_from((b"\n", b"\r\n", b"\r", b"\n\n", b""))
    header = st.binary(max_size=12).map(lambda text: b">" + text)
    residues = st.text("ACDEFGHIKLMNPQRSTVWYX", max_size=30).map(str.encode)
    noise = st.text(LETTERS, max_size=12).map(lambda text: text.encode("latin-1"))
    line = st.one_of(header, residues, residues, noise)
    whole = st.lists(st.tuples(line, line_end), max_size=8).map(lambda parts: b"".join(a + b for a, b in parts))
    ids = st.sampled_from((b">a b\n", b">b|1\n", b">c\n", b">\xc3\xa9\n"))
    good = st.lists(st.tuples(ids, residues), max_size=4).map(lambda parts: b"".join(a + b + b"\n" for a, b in parts))
    begin = (b"\x1f\x8b\x08\x00", b"BZh9", b"\xfd7zXZ\x00", b"(\xb5/\xfd", b"\xef\xbb\xbf", b"\xff\xfe")
    packed = st.tuples(st.sampled_from(begin), whole).map(b"".join)
    return st.one_of(whole, good, packed)


def _read_fasta(data: bytes, folder: Path) -> None:
    path = folder / "in.faa"
    path.write_bytes(data)
    records = list(read_fasta(path))
    for record in records:
        assert record.id
        assert min(record.id) > " "  # no control sign below it; those above are escaped where they are printed
        assert re.fullmatch(rb"[LAGVSERTIDPKQNFYMHWCXBUZO.-]*", record.sequence)
    with suppress(UserError):  # it may refuse what only the split needs to know
        assert estimate([path]).records <= len(records)


# Samples and settings

WORDS = ("sample", "path", "in.faa", "a", "gpu.json", "../x", "~nouser/x", "{x}", "", "logs", "é", "*", "x" * 300)


def _samples_text() -> st.SearchStrategy[str]:
    cell = st.one_of(st.sampled_from(WORDS), st.text(max_size=8))
    row = st.lists(cell, min_size=1, max_size=4).map("\t".join)
    good = st.text("abc.1é", min_size=1, max_size=5).map(lambda name: f"{name}\tin.faa")
    body = st.lists(st.one_of(good, good, good, row), max_size=4).map("\n".join)
    header = st.sampled_from(("sample\tpath\n", "sample\tpath\textra\n", "\ufeffsample,path\n", ""))
    return st.tuples(header, body).map("".join)


def _samples_table(text: str, folder: Path) -> None:
    (folder / "in.faa").write_text(">a\nMKV\n")
    table = folder / "samples.tsv"
    table.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = find_samples(str(table), folder)
    assert found
    for name, files in found.items():
        assert re.fullmatch(r"[\w.+-]+", name)
        assert all(file.is_file() for file in files)


KEYS = ("samples", "model", "layers", "pooling", "results", "long_proteins", "merge", "chunk_residues", "zzz")
VALUES = (
    *("in.faa", "esm2_demo", "last", "-1", "3.5", "1e400", "0x10", "18446744073709551616", "~", "no", "2026-11-27"),
    *("''", "[a, [b]]", "{longest: 500.5}", "{overlap: 0, longest: 1}", "{formats: [npy, npy]}", "&a [*a]"),
    *("!!python/name:os.system", "'\\x1b[2J'", '"\\x1b[2J"', "{window: 2}", "x" * 5000, "[" * 600, "~nouser/x"),
    *("/dev/zero", "{x}", "<x>", "\t"),
)


def _config_text() -> st.SearchStrategy[str]:
    line = st.tuples(st.sampled_from(KEYS), st.one_of(st.sampled_from(VALUES), st.text(max_size=8))).map(": ".join)
    good = st.sampled_from(("model: esm2_demo", "layers: [1, last]", "long_proteins: {overlap: 7}", "# a comment"))
    lines = st.lists(st.one_of(good, good, line), max_size=4).map("\n".join)
    return st.one_of(lines, lines, st.text(max_size=20))


def _config(text: str, folder: Path) -> None:
    (folder / "in.faa").write_text(">a\nMKV\n")
    file = folder / "config.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    run = load_config(Source("config.yaml", {"samples": "in.faa", **read_file(file)}, folder))
    assert run.samples
    assert str(run.results).isprintable()
    assert run.embedding.long_proteins.longest > 0


# Records

PROOF = FileProof(10, "a" * 64)
STATISTICS = RunStatistics(**stub_statistics(3, 30))  # type: ignore[arg-type]
PROVENANCE = Provenance(
    "m", "5" * 64, "m.pt", (6,), ("mean",), "auto", LongProteins(), 8, "float32", {"records": 3},
    {"standard_attention": 3}, {"sdpa": 3}, {"cpu": 3}, {"float32": 3}, ({"torch": "2"},), "a test", "",
)  # fmt: skip
RECORDS: tuple[Record, ...] = (
    ChunkManifest("chunk_00000", 3, 30, 36, "d" * 32),
    SplitRecord(
        SplitSettings(150, 1, 8, LongProteins(), InputPolicies()),
        {"own": SampleSplit(("a" * 64,), {"records": 3}, PROOF, (0,))},
        {"chunk_00000": SplitChunk("d" * 32, 3)}, {"unique": 3},
    ),
    SampleReport(
        {"index": "a"}, PROVENANCE, MergeCounts(3, 3, 0, 0, 8), {"parquet": {"embeddings.parquet": PROOF}},
        (ChunkRun("chunk_00000", "cpu", "standard_attention", "sdpa", ("float32",), STATISTICS, 3, "d" * 32),),
    ),
    PROVENANCE,
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a record's entries something can be put in another's place."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


@st.composite
def _changed_record(draw: st.DrawFn) -> tuple[type[Record], str]:
    record = draw(st.sampled_from(RECORDS))
    entries = json.loads(json.dumps({"format": record.FORMAT, **asdict(record)}))
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from([place for place in _places(entries) if place]))
        inside: Any = entries
        with suppress(LookupError, TypeError):
            for key in path:
                inside = inside[key]
            if draw(st.booleans()):
                inside[last] = draw(bombs())
            else:
                del inside[last]
    with suppress(RecursionError, ValueError):
        text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
        entries["checksum"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return type(record), json.dumps(entries)


def _record(drawn: tuple[type[Record], str], folder: Path) -> None:
    kind, text = drawn
    found = parse_record(text, kind, folder / "record.json")
    assert parse_record(record_text(found), kind, folder) == found
    for path in _places(asdict(found)):
        value: Any = asdict(found)
        for key in path:
            value = value[key]
        assert not isinstance(value, int) or 0 <= value < 2**63


# Files between steps


@cache
def _index_bytes(folder: Path) -> bytes:
    path = folder / "whole.parquet"
    numbers = np.arange(5, dtype=np.int32)
    digests = np.arange(80, dtype=np.uint8).reshape(5, 16)
    writer = IndexWriter(path)
    names = [f"p{n}" for n in range(5)]
    writer.write(IndexRows(names, numbers + 3, digests, numbers * 0, numbers, numbers * 0, names))
    writer.close()
    return path.read_bytes()


def _index(seed: int, folder: Path) -> None:
    whole = _index_bytes(folder)
    path = folder / "index.parquet"
    path.write_bytes(damaged(whole, seed))
    rows = [row for batch in read_index(path) for row in batch.ids]
    assert rows == [f"p{n}" for n in range(5)] or len(rows) <= 5


def _other_index(values: dict[str, list[Any]], folder: Path) -> None:
    """Whole Parquet files that are no index of ours."""
    path = folder / "other.parquet"
    table = pa.table(values)
    pq.write_table(table, path)
    for _ in read_index(path):
        assert table.schema.equals(INDEX_SCHEMA, check_metadata=True)


@cache
def _chunk_bytes(folder: Path) -> tuple[bytes, str]:
    path = folder / "chunk_00000.safetensors"
    n, d = 3, 8
    digests = np.arange(16 * n, dtype=np.uint8).reshape(n, 16)
    counts = np.array([1, 2, 3], np.int32)
    digest = digest_of_digests([digests.tobytes()])
    entries = {
        **EXPECTED, "pooling": '["mean","per_residue"]', "precisions": '["float32"]', "attention": "standard_attention",
        "attention_kernel": "sdpa", "layers_run": "eager", "device": "cpu", "embed_dim": "8", "model_layers": "6",
        "source_sha256": "6" * 64, "demo": "false", "chunk": "chunk_00000", "chunk_digest": digest,
        "versions": '{"torch": "2"}', "statistics": json.dumps(stub_statistics(n, 6)),
    }  # fmt: skip
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "digests": digests, "lengths": counts, "windows": np.ones(n, np.int32), "embedded": counts,
        "precision": np.zeros(n, np.uint8), "mean.6": np.ones((n, d), np.float32),
        "residues.6": np.ones((6, d), np.float32), "starts": np.array([0, 1, 3]),
    }  # fmt: skip
    write_chunk_file(path, tensors, entries)
    return path.read_bytes(), digest


def _chunk_file(drawn: tuple[int, str, Any], folder: Path) -> None:
    """A chunk file with bytes changed, or with one metadata entry replaced and a right checksum."""
    seed, entry, value = drawn
    whole, digest = _chunk_bytes(folder)
    path = folder / "changed.safetensors"
    if seed % 2:
        path.write_bytes(damaged(whole, seed))
        chunk = verify_chunk(path, "chunk_00000", digest, EXPECTED | {"pooling": '["mean","per_residue"]'})
        assert path.read_bytes() == whole, "damaged bytes are believed"
    else:
        path.write_bytes(whole)
        chunk = read_chunk_file(path)
        text = value if isinstance(value, str) else json.dumps(value)
        metadata = {key: words for key, words in chunk.metadata.items() if key not in ("format", "checksum")}
        with suppress(UnicodeEncodeError):
            write_chunk_file(path, {name: chunk.read(name) for name in chunk.names}, {**metadata, entry: text})
        chunk = verify_chunk(path, "chunk_00000", digest, {})
    metadata_read = ChunkMetadata.from_entries(chunk.metadata, path)
    assert metadata_read.run.statistics.proteins >= 0
    assert metadata_read.identity.embed_dim == chunk.layout["mean.6"][1][1]


ENTRIES = (
    *EXPECTED,
    "precisions",
    "embed_dim",
    "model_layers",
    "demo",
    "chunk",
    "chunk_digest",
    "versions",
    "statistics",
)


TARGETS = (
    Target("FASTA", _fasta_text(), _read_fasta, 0.17),
    Target("samples table", _samples_text(), _samples_table, 0.13),
    Target("config", _config_text(), _config, 0.09),
    Target("records", _changed_record(), _record, 0.2),
    Target("index, damaged", SEEDS, _index, 0.05),
    Target(
        "index, another table",
        st.dictionaries(st.sampled_from(INDEX_SCHEMA.names), st.just([1, 2]), max_size=6),
        _other_index,
        0.01,
    ),
    Target("chunk file", st.tuples(SEEDS, st.sampled_from(ENTRIES), bombs()), _chunk_file, 0.12),
    *strangers.TARGETS,
)
