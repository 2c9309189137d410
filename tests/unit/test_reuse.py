"""No sequence is embedded twice: across samples, across calls, and with earlier results, all with real embeddings."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from virnucpro import embed, read_embeddings
from virnucpro.base.digest import FileDigests
from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record
from virnucpro.base.settings import EmbeddingSettings, LongProteins
from virnucpro.chunking.manifest import SplitRecord, SplitSettings
from virnucpro.chunking.split import ToSplit, split_samples
from virnucpro.cli import main
from virnucpro.engine.job import embed_chunk
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.models.reference import ModelRef
from virnucpro.storage.chunk_file import ChunkFile, read_chunk_file, verify_chunk_file
from virnucpro.storage.chunk_metadata import identity
from virnucpro.storage.chunk_writer import write_chunk_file
from virnucpro.storage.merge import merge_embeddings
from virnucpro.storage.pool import Finder
from virnucpro.storage.report_record import SampleReport
from virnucpro.storage.reuse import Reuse
from virnucpro.storage.row_index import RowIndex
from virnucpro.storage.sample_files import PoolFiles, SampleFiles
from virnucpro.storage.tables import TABLES
from virnucpro.weights.manifest import WeightsRequest
from virnucpro.weights.prepare import prepare_weights

pytestmark = pytest.mark.usefixtures("one_thread")

LOG = logging.getLogger("reuse")
TINY = Architecture(layers=2, embed_dim=32, heads=4)
POOL = [
    "".join(random.Random(number).choices("LAGVSERTIDPKQNFYMHWC", k=random.Random(-number).randint(5, 60)))
    for number in range(60)
]


@dataclass
class Run:
    """A folder of results, made by the workflow's steps."""

    folder: Path
    weights: WeightsRequest
    earlier: Reuse | None = None
    settings: EmbeddingSettings = field(default_factory=EmbeddingSettings)

    def __post_init__(self) -> None:
        self.pool = PoolFiles(self.folder)

    def split(self, samples: Mapping[str, Sequence[str]], chunk_residues: int = 300) -> SplitRecord:
        to_split = {}
        for name, sequences in samples.items():
            sample = SampleFiles(self.folder / name)
            sample.folder.mkdir(parents=True, exist_ok=True)
            fasta = self.folder / f"{name}.faa"
            fasta.write_text("".join(f">{name}_{place}\n{text}\n" for place, text in enumerate(sequences)))
            to_split[name] = ToSplit([fasta], sample.index, sample.skipped)
        find = Finder(self.pool.tensors, self.settings, self.weights, reuse=self.earlier, logger=LOG)
        cut = SplitSettings(chunk_residues, 1, TINY.embed_dim, LongProteins())
        return split_samples(to_split, self.pool.chunks, cut, find=find, logger=LOG)

    def __call__(self, samples: Mapping[str, Sequence[str]], chunk_residues: int = 300) -> int:
        """Embed samples, by name; the tokens that were computed for them."""
        record = self.split(samples, chunk_residues)
        tokens = 0
        for name in record.to_embed():
            fasta, output = self.pool.chunks / f"{name}.fasta", self.pool.chunk_file(name)
            if not output.exists():
                tokens += embed_chunk(
                    fasta, self.weights.file, output, self.settings, devices=["cpu"], logger=LOG
                ).tokens
        manifest = self.weights.prepared()
        assert manifest is not None
        for name in samples:
            sample = SampleFiles(self.folder / name)
            merge_embeddings(
                sample.index,
                self.pool.chunks,
                self.pool.tensors,
                {"parquet": sample.folder / "embeddings.parquet"},
                sample.report,
                expected=identity(manifest, self.settings),
                command="a test",
            )
        return tokens

    def rows(self, name: str, *columns: str) -> list[dict[str, Any]]:
        path = self.folder / name / "embeddings.parquet"
        rows: list[dict[str, Any]] = pq.read_table(path, columns=list(columns) or ["embedding"]).to_pylist()
        return rows


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> WeightsRequest:
    folder = tmp_path_factory.mktemp("weights")
    write_checkpoint(folder / "my.pt", TINY)
    wanted = WeightsRequest.of(ModelRef.of(folder / "my.pt"), folder, FileDigests())
    prepare_weights(str(folder / "my.pt"), wanted.file, log=LOG.debug)
    return wanted


def tokens_of(*sequences: Sequence[str]) -> int:
    return sum(len(text) + 2 for text in {text for some in sequences for text in some})


def test_samples_share_what_they_have_in_common(tmp_path: Path, weights: WeightsRequest) -> None:
    """Two with 60 % in common, then a third one: tokens are those of different sequences, tables those of lone runs."""
    a, b, c = POOL[:20], POOL[8:28], [*POOL[20:40], POOL[0]]
    run = Run(tmp_path / "together", weights)
    assert run({"a": a, "b": b}) == tokens_of(a, b)
    made = {path: path.read_bytes() for path in run.pool.tensors.iterdir()}
    indices = [(run.folder / name / "proteins.parquet").read_bytes() for name in "ab"]
    assert run({"a": a, "b": b, "c": c}) == tokens_of(a, b, c) - tokens_of(a, b)
    assert {path: path.read_bytes() for path in made} == made
    assert [(run.folder / name / "proteins.parquet").read_bytes() for name in "ab"] == indices
    for name, sequences in (("a", a), ("b", b), ("c", c)):
        alone = Run(tmp_path / name, weights)
        assert alone({name: sequences}) == tokens_of(sequences)
        assert run.rows(name) == alone.rows(name)
        report = read_record(run.folder / name / "embeddings.json", SampleReport)
        assert sum(chunk.proteins for chunk in report.chunks) == len(set(sequences))
        assert report.provenance.device == {"cpu": len(set(sequences))}
    assert run({"a": a, "c": c}, chunk_residues=10**6) == 0, "however chunks are cut"


def test_a_lost_chunk_is_cut_again_alone(tmp_path: Path, weights: WeightsRequest) -> None:
    run = Run(tmp_path, weights)
    run({"a": POOL[:20]})
    run({"a": POOL[:25]})
    before = run.rows("a")
    lost = run.pool.chunk_file("chunk_00001")
    tokens = int((read_chunk_file(lost).read("lengths") + 2).sum())
    lost.unlink()
    assert run({"a": POOL[:25]}) == tokens
    assert run.rows("a") == before


def taking(folder: Path, weights: WeightsRequest, *sources: Path, **changes: object) -> Run:
    devices: tuple[str, ...] = changes.pop("devices", ("cpu",))  # type: ignore[assignment]
    any_device = bool(changes.pop("any_device", False))
    return Run(folder, weights, Reuse(sources, folder / ".reuse", devices, any_device), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", [("mean",), ("mean", "per_residue")], ids="+".join)
def test_earlier_results_are_copied(tmp_path: Path, weights: WeightsRequest, pooling: tuple[str, ...]) -> None:
    settings = EmbeddingSettings(pooling=pooling)
    Run(tmp_path / "old", weights, settings=settings)({"x": POOL[:30]})
    wanted = [*POOL[50:53], *POOL[10:35], POOL[12]]
    alone = Run(tmp_path / "alone", weights, settings=settings)
    alone({"a": wanted})
    shutil.copytree(tmp_path / "old", tmp_path / "mine")
    for path in (tmp_path / "mine").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    run = taking(tmp_path / "new", weights, tmp_path / "mine", settings=settings)
    assert run({"a": wanted}) == tokens_of(wanted) - tokens_of(POOL[10:30])
    shutil.move(tmp_path / "mine", tmp_path / "gone")
    columns = ["embedding"] if pooling == ("mean",) else ["embedding", "residues"]
    assert run.rows("a", *columns) == alone.rows("a", *columns)
    origins = [row["origin"] for row in run.rows("a", "origin")]
    assert origins == [f"reused: {tmp_path / 'mine'}" if text in POOL[10:30] else "computed" for text in wanted]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-300] ^= 4
    path.write_bytes(content)


def deleted(path: Path) -> None:
    path.unlink()


def swapped(path: Path) -> None:
    """Another chunk's file in its place."""
    shutil.copy(path.with_name("chunk_00000.safetensors"), path)


def other_weights(path: Path) -> None:
    chunk = read_chunk_file(path)
    write_chunk_file(
        path, {name: chunk.read(name) for name in chunk.names}, chunk.metadata | {"weights_sha256": "0" * 64}
    )


@pytest.mark.parametrize("damage", [cut_short, flipped, deleted, swapped, other_weights])
def test_a_bad_source_is_named_and_its_sequences_are_embedded(
    damage: Callable[[Path], None], tmp_path: Path, weights: WeightsRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the index has known it since an earlier run."""
    old = Run(tmp_path / "old", weights)
    old({"x": POOL[:30]})
    bad = old.pool.chunk_file("chunk_00001")
    lost = int((read_chunk_file(bad).read("lengths") + 2).sum())
    run = taking(tmp_path / "new", weights, tmp_path / "old")
    assert run({"a": POOL[:3]}) == 0
    damage(bad)
    caplog.clear()
    caplog.set_level(logging.WARNING)
    shutil.rmtree(run.pool.tensors)
    assert run({"a": POOL[:30]}) == lost
    assert run.rows("a") == old.rows("x")
    assert str(bad) in caplog.text


def test_what_was_made_otherwise_is_not_taken(tmp_path: Path, weights: WeightsRequest) -> None:
    old = Run(tmp_path / "old", weights)
    old({"x": POOL[:10]})
    everything = tokens_of(POOL[:10])
    for number, changes in enumerate([{"layers": (1,)}, {"precision": "fp32"}, {"pooling": ("per_residue",)}]):
        run = taking(tmp_path / str(number), weights, tmp_path / "old", settings=EmbeddingSettings(**changes))  # type: ignore[arg-type]
        record = run.split({"a": POOL[:10]})
        assert record.counts["reused"] == 0
    for devices, is_any, reused in ((("NVIDIA H200",), False, 0), (("NVIDIA H200",), True, 10), (("cpu",), False, 10)):
        run = taking(tmp_path / "device", weights, tmp_path / "old", devices=devices, any_device=is_any)
        assert run.split({"a": POOL[:10]}).counts["reused"] == reused
        shutil.rmtree(run.folder)
    for path in old.pool.tensors.iterdir():
        chunk = read_chunk_file(path)
        write_chunk_file(path, {name: chunk.read(name) for name in chunk.names}, chunk.metadata | {"numbers": "0"})
    assert taking(tmp_path / "code", weights, tmp_path / "old")({"a": POOL[:10]}) == everything


@pytest.mark.parametrize("damage", [flipped, deleted, swapped, other_weights])
def test_a_source_that_is_hit_between_its_index_and_its_copy(
    damage: Callable[[Path], None],
    tmp_path: Path,
    weights: WeightsRequest,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = Run(tmp_path / "old", weights)
    old({"x": POOL[:30]})
    bad = old.pool.chunk_file("chunk_00001")
    lost = int((read_chunk_file(bad).read("lengths") + 2).sum())
    find = RowIndex.find

    def found(index: RowIndex, digests: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        damage(bad)
        return find(index, digests)

    monkeypatch.setattr(RowIndex, "find", found)
    assert taking(tmp_path / "new", weights, tmp_path / "old")({"a": POOL[:30]}) == lost
    assert Run(tmp_path / "new", weights).rows("a") == old.rows("x")
    assert f"{bad} can't be used" in caplog.text


@pytest.mark.parametrize("damage", [cut_short, deleted, swapped])
def test_a_source_that_is_hit_while_it_is_copied(
    damage: Callable[[Path], None],
    tmp_path: Path,
    weights: WeightsRequest,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows that were copied with it are embedded too: nobody knows when it was hit."""
    old = Run(tmp_path / "old", weights)
    old({"x": POOL[:30]})
    bad = old.pool.chunk_file("chunk_00001")

    def verified(path: Path) -> ChunkFile:
        chunk = verify_chunk_file(path)
        if path == bad:
            damage(bad)
        return chunk

    monkeypatch.setattr("virnucpro.storage.reuse.verify_chunk_file", verified)
    assert taking(tmp_path / "new", weights, tmp_path / "old")({"a": POOL[:30]}) == tokens_of(POOL[:30])
    assert Run(tmp_path / "new", weights).rows("a") == old.rows("x")
    assert f"{bad} can't be used" in caplog.text


def test_a_command_whose_sources_are_hit_from_its_plan_to_its_merge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``virnucpro embed --reuse``: sources that are damaged, swapped, deleted; all of them gone; then a bad copy."""
    earlier, own, tensors = tmp_path / "earlier.faa", tmp_path / "own.faa", tmp_path / "earlier" / "tensors"
    earlier.write_text("".join(f">e{place}\n{text}\n" for place, text in enumerate(POOL[:20])))
    own.write_text(earlier.read_text() + f">new\n{POOL[50]}\n")
    settings: dict[str, Any] = {"model": "esm2_demo", "devices": ["cpu"]}
    embed(earlier, tmp_path / "earlier", chunk_residues=60, **settings)
    right = read_embeddings(embed(own, tmp_path / "alone", **settings))
    hit = {
        tensors / f"chunk_{number:05d}.safetensors": how for number, how in ((1, flipped), (2, deleted), (3, swapped))
    }
    kept = sorted(set(tensors.iterdir()) - hit.keys())
    sources = {path: int((read_chunk_file(path).read("lengths") + 2).sum()) for path in (*hit, *kept)}
    find = RowIndex.find

    def found(index: RowIndex, digests: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        for path, damage in hit.items():
            damage(path)
        return find(index, digests)

    command = ["embed", str(own), "-o", str(tmp_path / "out"), "--model", "esm2_demo", "--devices", "cpu"]
    command += ["--reuse", str(tmp_path / "earlier")]
    merge = merge_embeddings

    def after_the_sources_are_gone(*arguments: Any, **options: Any) -> Any:
        shutil.rmtree(tmp_path / "earlier")
        return merge(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(RowIndex, "find", found)
        patched.setattr("virnucpro.storage.merge.merge_embeddings", after_the_sources_are_gone)
        main(command)
    said = capsys.readouterr().err
    assert [path for path in hit if f"{path} can't be used" not in said] == []
    (table,) = (tmp_path / "out").glob("embeddings.parquet")
    np.testing.assert_array_equal(read_embeddings(table).matrix, right.matrix)
    report = read_record(tmp_path / "out" / "embeddings.json", SampleReport)
    computed = len(POOL[50]) + 2 + sum(sources[path] for path in hit)
    assert sum(chunk.statistics.tokens for chunk in report.chunks) == computed
    copied = [chunk for chunk in report.chunks if chunk.reused_from]
    assert sum(chunk.statistics.residues + 2 * chunk.proteins for chunk in copied) == sum(
        sources[path] for path in kept
    )

    flipped(tmp_path / "out" / "tensors" / f"{copied[0].chunk}.safetensors")
    table.unlink()
    with pytest.raises(SystemExit):
        main(command)
    assert f"{copied[0].chunk}.safetensors: its bytes do not give its checksum" in capsys.readouterr().err
    main(command)
    assert f"{tmp_path / 'earlier'} is not there any more" in capsys.readouterr().err
    np.testing.assert_array_equal(read_embeddings(table).matrix, right.matrix)
    main(command)
    with pytest.raises(UserError, match=r"'reuse': there is no .*nowhere"):
        embed(own, tmp_path / "none", reuse=tmp_path / "nowhere", **settings)


@pytest.mark.parametrize("name", ["parquet", "hdf5", "npy", "virnucpro_pt"])
def test_tables_are_reused_where_their_chunk_files_are_gone(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder of them, or one by its path; bit for bit, and never one that is not what its record says."""
    earlier, own, old = tmp_path / "earlier.faa", tmp_path / "own.faa", tmp_path / "old"
    earlier.write_text("".join(f">e/{place}\n{text}\n" for place, text in enumerate([*POOL[:20], POOL[3]])))
    own.write_text("".join(f">{place}\n{text}\n" for place, text in enumerate([*POOL[15:25], *POOL[:5][::-1]])))
    settings: dict[str, Any] = {
        "model": "esm2_demo",
        "devices": ["cpu"],
        "long_proteins": {"longest": 30, "overlap": 9},
    }
    settings["pooling"] = ("mean", "bos", "max") if name in ("parquet", "hdf5") else "mean"
    embed(earlier, old, formats=[name], **settings)
    right = embed(own, tmp_path / "alone", chunk_residues=100, **settings)
    shutil.rmtree(old / "tensors")
    shutil.rmtree(old / "chunks")
    table = old / TABLES[name].name

    def origins(source: Path, folder: str) -> list[str]:
        made = embed(own, tmp_path / folder, reuse=source, **settings)
        rows, wanted = pq.read_table(made).to_pylist(), pq.read_table(right).to_pylist()
        assert [{**row, "origin": ""} for row in rows] == [{**row, "origin": ""} for row in wanted]
        return [row["origin"] for row in rows]

    for number, source in enumerate((tmp_path / "old", table)):
        reused = f"reused: {source}"
        assert origins(source, f"new{number}") == [*[reused] * 5, *["computed"] * 5, *[reused] * 5]
    report = read_record(tmp_path / "new0" / "embeddings.json", SampleReport)
    assert {chunk.device for chunk in report.chunks} == {"cpu"}

    caplog.set_level(logging.WARNING)
    shutil.copytree(old, tmp_path / "whole")
    file = {"npy": table / "embedding.npy", "virnucpro_pt": table / "output_1_ESM.pt"}.get(name, table)
    for hit in (file, old / "proteins.parquet", old / "embeddings.json"):
        caplog.clear()
        flipped(hit)
        assert set(origins(old, f"bad_{hit.name}")) == {"computed"}
        assert str(hit) in caplog.text
        shutil.rmtree(old)
        shutil.copytree(tmp_path / "whole", old)
    if name != "virnucpro_pt":
        embed(earlier, old, formats=[name], dtype="float16", **settings)
        shutil.rmtree(old / "tensors")
        assert set(origins(old, "rounded")) == {"computed"}


def test_from_python_and_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta = tmp_path / "in.faa"
    fasta.write_text("".join(f">p{place}\n{text}\n" for place, text in enumerate(POOL[:12])))
    first = embed(fasta, tmp_path / "first", model="esm2_demo", devices=["cpu"], chunk_residues=100)
    fasta.write_text(fasta.read_text() + ">new\nMKVLAAGIVGLC\n")
    more: dict[str, Any] = {"formats": ["parquet", "hdf5", "npy"], "reuse": tmp_path / "first"}
    other = embed(fasta, tmp_path / "other", model="esm2_demo", devices=["cpu"], **more)
    origins = [*[f"reused: {tmp_path / 'first'}"] * 12, "computed"]
    assert pq.read_table(other)["origin"].to_pylist() == origins
    assert (tmp_path / "other" / "embeddings_npy" / "origin.txt").read_text().splitlines() == origins
    with h5py.File(tmp_path / "other" / "embeddings.h5") as file:
        assert [record.attrs.get("origin", b"computed").decode() for record in file.values()] == origins
    fasta.write_text(fasta.read_text().partition(">new")[0])
    second = embed(fasta, tmp_path / "second", model="esm2_demo", devices=["cpu"], reuse=tmp_path / "first")
    np.testing.assert_array_equal(read_embeddings(first).matrix, read_embeddings(second).matrix)
    report = json.loads((tmp_path / "second" / "embeddings.json").read_text())
    assert sum(chunk["statistics"]["tokens"] for chunk in report["chunks"]) == 0
    fasta.write_text(">other\nMKVLAAGIVGLCAKAYE\n")
    embed(fasta, tmp_path / "second", model="esm2_demo", devices=["cpu"])
    main(["store", str(tmp_path / "second"), "--verify", "--prune"])
    said = capsys.readouterr().out
    assert "13 sequences (12 from earlier results) in 2 chunk files" in said
    assert "1 chunk file of these" in said
    assert "2 chunk files verified" in said
    assert "1 file removed" in said
    (left,) = (tmp_path / "second" / "tensors").iterdir()
    cut_short(left)
    with pytest.raises(SystemExit):
        main(["store", str(tmp_path / "second"), "--verify"])
    assert "so it is not a complete chunk file" in capsys.readouterr().out
