"""Two runs at the same moment, over each thing that they can share: right tables, or one of them is refused.

Each trial starts them some random moment apart. ``virnucpro.embed`` is called in two processes that are kept, because
loading torch takes longer than all else.
"""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import random
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.splitting import split_proteins
from tests.workflow.running import Result, snakemake
from virnucpro import embed
from virnucpro.base import digest
from virnucpro.base.digest import FileDigests, file_sha256
from virnucpro.base.errors import UserError
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.engine.job import embed_chunk
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.storage.chunk_file import verify_chunk_file
from virnucpro.storage.tables import read_embeddings
from virnucpro.weights.manifest import read_manifest
from virnucpro.weights.prepare import prepare_weights

TINY = Architecture(layers=2, embed_dim=32, heads=4)
FASTA = {"a": ">a1\nMKVLAAGIVGLCAKAYE\n>a2\nMKKLLAAA\n", "b": ">b1\nMSDNAWQRRLLVV\n>b2\nMKKLLAAA\n>b3\nMWWY\n"}

TRIALS = [pytest.param(2, id="2"), pytest.param(20, marks=pytest.mark.slow, id="20")]

Vectors = dict[str, bytes]


@pytest.fixture(scope="module")
def two() -> Iterator[ProcessPoolExecutor]:
    """Two processes that have loaded what they need."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(time.sleep, (1, 1)))
        yield pool


def embedded(fasta: Path, folder: Path, model: Path, weights: Path, delay: float) -> str:
    """What ``virnucpro.embed`` does after a delay: nothing to say, or the sentence that it ends in."""
    time.sleep(delay)
    try:
        embed(fasta, folder, model=model, weights_folder=weights, devices=["cpu"], chunk_residues=10)
    except UserError as error:
        return str(error)
    return ""


def vectors(folder: Path) -> Vectors:
    ids, matrix = read_embeddings(folder / "embeddings.parquet")
    return {name: row.tobytes() for name, row in zip(ids, matrix, strict=True)}


class Inputs:
    """Two FASTA files, two checkpoints of one name, and what each pair of them gives."""

    def __init__(self, folder: Path, pool: ProcessPoolExecutor) -> None:
        for number, name in enumerate("ab"):
            (folder / name).mkdir()
            self.fasta(folder, name).write_text(FASTA[name])
            write_checkpoint(self.model(folder, name), TINY, seed=number)
        self.folder = folder
        self.expected: dict[tuple[str, str], Vectors] = {}
        for fasta, model in itertools.product("ab", "ab"):
            to = folder / f"expected_{fasta}{model}"
            job = pool.submit(embedded, self.fasta(folder, fasta), to, self.model(folder, model), to / "weights", 0)
            assert job.result() == ""
            self.expected[fasta, model] = vectors(to)

    @staticmethod
    def fasta(folder: Path, name: str) -> Path:
        return folder / name / "in.faa"

    @staticmethod
    def model(folder: Path, name: str) -> Path:
        return folder / name / "best.pt"

    def at_once(
        self, pool: ProcessPoolExecutor, chance: random.Random, calls: list[tuple[str, str, Path, Path]]
    ) -> list[str]:
        """What each call ends in: FASTA file, checkpoint, folder of results, folder of weights."""
        jobs = [
            pool.submit(
                embedded,
                self.fasta(self.folder, fasta),
                results,
                self.model(self.folder, model),
                weights,
                chance.choice([0, chance.uniform(0, 0.3)]),
            )
            for fasta, model, results, weights in calls
        ]
        return [job.result(timeout=120) for job in jobs]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, two: ProcessPoolExecutor) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"), two)


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.parametrize("models", ["ab", "aa"])
def test_one_folder_of_weights(
    tmp_path: Path, two: ProcessPoolExecutor, inputs: Inputs, models: str, trials: int
) -> None:
    """Two checkpoints of one file name, or one checkpoint twice, prepared at the same moment."""
    chance = random.Random(models)
    for trial in range(trials):
        folder = tmp_path / str(trial)
        calls = [("a", model, folder / str(place), folder / "weights") for place, model in enumerate(models)]
        said = inputs.at_once(two, chance, calls)
        for (fasta, model, results, _), sentence in zip(calls, said, strict=True):
            if sentence:
                assert "run the same command again" in sentence
            else:
                assert vectors(results) == inputs.expected[fasta, model], trial


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.parametrize(("fastas", "models"), [("ab", "aa"), ("aa", "ab"), ("ab", "ab")])
def test_one_folder_of_results(
    tmp_path: Path, two: ProcessPoolExecutor, inputs: Inputs, fastas: str, models: str, trials: int
) -> None:
    chance = random.Random(fastas + models)
    for trial in range(trials):
        results = tmp_path / str(trial)
        calls = [(fasta, model, results, tmp_path / "weights") for fasta, model in zip(fastas, models, strict=True)]
        said = inputs.at_once(two, chance, calls)
        ended_well = [call for call, sentence in zip(calls, said, strict=True) if not sentence]
        assert ended_well
        assert all("another process writes to" in sentence for sentence in said if sentence)
        assert vectors(results) in [inputs.expected[fasta, model] for fasta, model, *_ in ended_well], trial


def digested(store: Path, files: list[Path]) -> list[str]:
    digest.CLOCK_TICK = 0  # in a process of this test's own: files are of no age here
    digests = FileDigests(store)
    found = [digests.sha256(file) for file in files]
    digests.save()
    return found


@pytest.mark.parametrize("trials", TRIALS)
def test_one_cache_of_digests(tmp_path: Path, two: ProcessPoolExecutor, trials: int) -> None:
    chance = random.Random(1)
    for trial in range(trials):
        folder = tmp_path / str(trial)
        folder.mkdir()
        files = [folder / str(number) for number in range(40)]
        for file in files:
            file.write_bytes(chance.randbytes(1000))
        right = {file: file_sha256(file) for file in files}
        parts = [chance.sample(files, 30) for _ in range(2)]
        jobs = [two.submit(digested, folder / "store", part) for part in parts]
        for part, job in zip(parts, jobs, strict=True):
            assert job.result() == [right[file] for file in part]
        kept = json.loads((folder / "store").read_text())
        assert len(kept) >= 30
        assert set(kept.values()) <= set(right.values())
        assert two.submit(digested, folder / "store", files).result() == list(right.values())


@pytest.mark.parametrize("trials", TRIALS)
def test_two_workflows_with_one_folder_of_results(tmp_path: Path, trials: int) -> None:
    """From two working folders: Snakemake's own lock lies in each of them."""
    chance = random.Random(2)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.faa").write_text(FASTA[name])

    def split(name: str, results: Path, delay: float) -> Result:
        time.sleep(delay)
        config = {"samples": "own.faa", "model": "esm2_demo", "results": results}
        return snakemake(tmp_path / name, f"{results}/chunks", config=config, cores=1)

    for trial in range(trials):
        results = tmp_path / f"results{trial}"
        (results / "own").mkdir(parents=True)
        with ThreadPoolExecutor(2) as pool:
            delays = chance.choice([(0.0, 0.0), (0.0, chance.uniform(0, 3)), (chance.uniform(0, 3), 0.0)])
            ended = dict(zip("ab", pool.map(split, "ab", [results, results], delays), strict=True))
        fine = [name for name, result in ended.items() if result.code == 0]
        assert fine, [result.text for result in ended.values()]
        for name in set("ab") - set(fine):
            assert f"error: another process writes to {results}" in ended[name].text
            assert "Traceback" not in ended[name].text
        written = "".join(path.read_text() for path in sorted((results / "chunks").glob("*.fasta")))
        assert written in [FASTA[name] for name in fine], trial


@pytest.mark.parametrize("trials", [pytest.param(10, id="10"), pytest.param(60, marks=pytest.mark.slow, id="60")])
def test_weights_that_are_replaced_all_the_time(tmp_path: Path, trials: int) -> None:
    """A chunk never says one model's sha256 and holds the numbers of another."""
    files, expected = [], {}
    weights, fasta = tmp_path / "weights.safetensors", tmp_path / "own.faa"
    fasta.write_text(FASTA["a"])
    split_proteins([fasta], tmp_path / "index", tmp_path / "chunks", chunk_residues=100)
    logger = logging.getLogger("replaced")

    def vectors_of_chunk(output: Path) -> tuple[str, bytes]:
        chunk = tmp_path / "chunks" / "chunk_00000.fasta"
        settings = EmbeddingSettings()
        embed_chunk(chunk, weights, output, settings, devices=["cpu"], logger=logger)
        file = verify_chunk_file(output)
        return file.metadata["weights_sha256"], file.read("mean.2").tobytes()

    for seed in range(2):
        files.append(tmp_path / f"{seed}.safetensors")
        write_checkpoint(tmp_path / "my.pt", TINY, seed=seed)
        prepare_weights(str(tmp_path / "my.pt"), files[-1], log=logger.debug)
        shutil.copy(files[-1], weights)
        sha256, numbers = vectors_of_chunk(tmp_path / "out")
        assert sha256 == read_manifest(files[-1]).sha256
        expected[sha256] = numbers
    assert len(set(expected.values())) == 2
    ended = threading.Event()

    def replace() -> None:
        for file in itertools.cycle(files):
            if ended.wait(0.004):
                return
            shutil.copy(file, tmp_path / "beside")
            (tmp_path / "beside").replace(weights)

    refused = 0
    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace)
        try:
            for _ in range(trials):
                try:
                    sha256, numbers = vectors_of_chunk(tmp_path / "out")
                except UserError:
                    refused += 1
                    continue
                assert expected[sha256] == numbers
        finally:
            ended.set()
        replacing.result()
    assert refused > 0
