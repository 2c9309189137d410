"""Every bit that flips in what lies between two steps gives the right result or one sentence, never another result."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from virnucpro.base.digest import FileDigests, recorded, write_products
from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record
from virnucpro.base.settings import EmbeddingSettings, InputPolicies, TableSettings
from virnucpro.chunking.manifest import SplitSettings, read_split
from virnucpro.chunking.split import ToSplit, split_samples
from virnucpro.engine.job import embed_chunk
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.models.reference import ModelRef
from virnucpro.sequences.translation import translate_contigs
from virnucpro.storage.chunk_file import read_chunk_file
from virnucpro.storage.chunk_metadata import identity
from virnucpro.storage.merge import merge_embeddings
from virnucpro.storage.report_record import SampleReport
from virnucpro.storage.sample_files import PoolRequest, SampleRequest
from virnucpro.storage.state import RunState, table_settings, translation_origin
from virnucpro.weights.manifest import WeightsRequest, read_manifest
from virnucpro.weights.prepare import prepare_weights

LOGGER = logging.getLogger("flipped")
WINDOW, CHUNK_RESIDUES = 90, 150
POLICIES, SETTINGS, TABLES = InputPolicies(), EmbeddingSettings(), TableSettings()
TINY = Architecture(layers=2, embed_dim=32, heads=4)
SPLIT = SplitSettings(CHUNK_RESIDUES, 1, TINY.embed_dim, SETTINGS.long_proteins, POLICIES)


@dataclass(frozen=True)
class Finished:
    """A sample of contigs with all that the workflow's steps leave; each method is one step, as a rule runs it."""

    request: SampleRequest
    weights: WeightsRequest
    pool: PoolRequest

    @property
    def folder(self) -> Path:
        return self.request.folder

    @property
    def translated(self) -> Path:
        return self.folder / "translated.faa"

    def state(self) -> RunState:
        return RunState({"own": self.request}, self.weights, FileDigests(), self.pool)

    def translate(self) -> None:
        contigs, sample = self.request.inputs, self.request
        outputs = [self.translated, self.folder / "translated.fna", self.folder / "skipped_contigs.tsv"]
        counts = translate_contigs(contigs, *outputs, window=WINDOW, policies=POLICIES)
        write_products(sample.translation, translation_origin(counts.inputs, WINDOW, POLICIES), outputs)

    def split(self, folder: Path) -> object:
        made_as = [recorded(self.request.translation, self.translated).sha256]
        chunks = folder / "chunks"
        sample = ToSplit([self.translated], folder / "proteins.parquet", folder / "skipped.tsv", made_as)
        split_samples({"own": sample}, chunks, SPLIT)
        return read_split(chunks)

    def embed(self, chunk: str, output: Path) -> dict[str, bytes]:
        fasta = self.pool.chunks / f"{chunk}.fasta"
        embed_chunk(fasta, self.weights.file, output, SETTINGS, devices=["cpu"], logger=LOGGER)
        file = read_chunk_file(output)
        return {name: file.read(name).tobytes() for name in file.names}

    def merge(self, folder: Path) -> list[object]:
        request = self.request
        merge_embeddings(
            request.index,
            self.pool.chunks,
            self.pool.tensors,
            {"parquet": folder / "embeddings.parquet"},
            folder / "embeddings.json",
            expected=identity(read_manifest(self.weights.file), SETTINGS),
            made_from=table_settings(SETTINGS, TABLES),
            command="a test",
        )
        table = pq.read_table(folder / "embeddings.parquet")
        return [table.schema.names, *table.to_pylist()]

    def report(self) -> SampleReport:
        return read_record(self.request.report, SampleReport)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    chance = random.Random(5)
    contigs = ["".join(chance.choices("ACGT", k=chance.randint(90, 400))) for _ in range(5)]
    (folder / "contigs.fna").write_text("".join(f">contig{n} x\n{bases}\n" for n, bases in enumerate(contigs)))
    write_checkpoint(folder / "my.pt", TINY)
    weights = WeightsRequest.of(ModelRef.of(folder / "my.pt"), folder, FileDigests())
    prepare_weights(str(folder / "my.pt"), weights.file, log=lambda line: None)
    sample = folder / "own"
    request = SampleRequest(sample, (folder / "contigs.fna",), WINDOW, TABLES, POLICIES)
    pool = PoolRequest(sample, SPLIT, SETTINGS)
    run = Finished(request, weights, pool)
    run.translate()
    run.split(sample)
    chunks = [path.stem for path in sorted(pool.chunks.glob("*.fasta"))]
    assert len(chunks) > 2
    for chunk in chunks:
        run.embed(chunk, pool.chunk_file(chunk))
    assert len(run.merge(sample)) > 10
    state = run.state()
    reasons = [state.translation_stale("own"), state.split_stale(), state.tables_stale("own")]
    assert reasons == [None, None, None]
    return run


@contextmanager
def flipped(path: Path, place: int, bit: int) -> Iterator[None]:
    """One bit of a file turned over for the block; a file that was moved aside is put back."""
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[place] ^= 1 << bit
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(whole)
        path.with_name(path.name + ".bad").unlink(missing_ok=True)


Step = Callable[[Finished, Path], object]

FILES: list[tuple[str, int, Step]] = [
    ("own/translated.faa", 200, lambda run, folder: run.split(folder)),
    ("own/translated.json", 200, lambda run, folder: run.split(folder)),
    ("own/proteins.parquet", 400, lambda run, folder: run.merge(folder)),
    ("own/chunks/split.json", 300, lambda run, folder: run.merge(folder)),
    ("own/chunks/chunk_00001.fasta", 60, lambda run, folder: run.embed("chunk_00001", folder / "out")),
    ("own/chunks/chunk_00001.json", 250, lambda run, folder: run.embed("chunk_00001", folder / "out")),
    ("own/tensors/chunk_00001.safetensors", 300, lambda run, folder: run.merge(folder)),
    ("my-*.safetensors", 150, lambda run, folder: run.embed("chunk_00001", folder / "out")),
    ("own/embeddings.json", 300, lambda run, folder: run.report()),
]
"""Each file, at how many random places a bit of it flips, and what reads it."""

QUICK = 4
"""One of so many places outside of slow tests."""


@pytest.mark.parametrize("share", [QUICK, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize(("name", "count", "step"), FILES, ids=[name for name, *_ in FILES])
def test_a_flipped_bit_is_refused_or_says_nothing(
    finished: Finished, tmp_path: Path, name: str, count: int, step: Step, share: int
) -> None:
    count //= share
    (path,) = finished.folder.parent.glob(name)
    expected = step(finished, tmp_path)
    size = path.stat().st_size
    chance = random.Random(name)
    random_places = [(chance.randrange(size), chance.randrange(8)) for _ in range(count)]
    refused = 0
    for place, bit in [*((end, bit) for end in (0, size - 1) for bit in range(8)), *random_places]:
        with flipped(path, place, bit):
            state = finished.state()
            reasons = [state.weights_stale(), state.translation_stale("own"), state.split_stale()]
            reasons += [state.chunk_stale("chunk_00001"), state.tables_stale("own")]
            try:
                found = step(finished, tmp_path)
            except UserError:
                refused += 1
                # The next run makes it again; the bytes of sequences and tensors are looked at where they are used.
                assert any(reasons) or path.suffix in (".fasta", ".safetensors"), f"bit {bit} of byte {place} of {name}"
            else:
                assert found == expected, f"bit {bit} of byte {place} of {name}: {reasons}"
    assert refused > 0.6 * count
