"""What decides whether a table is what was asked for: the content of inputs, weights and settings, and nothing else.

Each case changes something in a finished run, runs the same command again, and compares the table with that of a fresh
run of the same inputs and settings. What was run again stands in docs/content.md, printed by these tests.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workflow.fresh import write_fresh_tables
from tests.workflow.running import EXAMPLE, Result, snakemake
from tests.workflow.tables import CONTENT, record
from virnucpro.models.esm2.sizes import DEMO_ARCHITECTURE
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.models.reference import ModelRef, planning_architecture

pytestmark = pytest.mark.usefixtures("one_thread")

TABLE = Path("results/own/embeddings.parquet")
DISTANT_PAST, DISTANT_FUTURE = 86_400, 4_000_000_000


@dataclass
class Finished:
    """A folder in which a run has ended, and the settings of that run."""

    folder: Path
    config: dict[str, object] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def sample(self) -> Path:
        return self.folder / "results" / "own"

    def call(self, *arguments: str) -> Result:
        return snakemake(self.folder, *arguments, config=self.config, cores=1)

    def table(self) -> pa.Table:
        return pq.read_table(self.folder / TABLE)

    def forget_snakemake(self) -> None:
        shutil.rmtree(self.folder / ".snakemake")


def write_inputs(folder: Path) -> None:
    """Two FASTA files of some short proteins, in a folder that a link leads to, and a checkpoint."""
    text = EXAMPLE.read_text().split(">")[1:]
    short = [f">{record}" for record in text if len(record) < 350][:16]
    (folder / "v1").mkdir(parents=True)
    (folder / "v1" / "a.faa").write_text("".join(short[:8]))
    (folder / "v1" / "b.faa").write_text("".join(short[8:]))
    (folder / "data").symlink_to("v1")
    write_checkpoint(folder / "best.pt", DEMO_ARCHITECTURE, seed=1)


CONFIG: dict[str, object] = {"samples": "{own: [data/a.faa, data/b.faa]}", "model": "best.pt", "chunk_residues": 1200}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    run = Finished(tmp_path_factory.mktemp("content") / "run", CONFIG)
    write_inputs(run.folder)
    result = run.call()
    assert result.code == 0, result.text
    assert result.jobs["embed_esm2"] == len(list((run.results / "tensors").iterdir())) > 2
    return run


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Finished:
    """A copy of the finished run with its dates and Snakemake's records."""
    shutil.copytree(finished.folder, tmp_path / "run", symlinks=True)
    return Finished(tmp_path / "run", dict(CONFIG))


def fresh(run: Finished, folder: Path) -> pa.Table:
    """The table of a run of the same inputs and settings in which nothing was there before."""
    files = re.findall(r"data/\w+\.faa", str(run.config["samples"]))
    settings = {**run.config, "model": run.folder / "best.pt", "layers": [run.config.get("layers", "last")]}
    settings |= {"dtype": "float16"} if "float16" in str(run.config.get("merge")) else {}
    width = planning_architecture(ModelRef.of(run.folder / "best.pt")).embed_dim
    write_fresh_tables(folder, [run.folder / file for file in files], width, settings)
    return pq.read_table(folder / "embeddings.parquet")


def older_sequences(run: Finished) -> None:
    """Another protein in a file whose date lies before that of all results."""
    path = run.folder / "v1" / "a.faa"
    other = path.with_name("other")
    lines = path.read_text().splitlines()
    other.write_text("\n".join([lines[0], "MKVLAAGIVGLCAKAYE", *lines[2:]]) + "\n")
    os.utime(other, (DISTANT_PAST, DISTANT_PAST))
    other.replace(path)


def link_elsewhere(run: Finished) -> None:
    shutil.copytree(run.folder / "v1", run.folder / "v2")
    path = run.folder / "v2" / "b.faa"
    path.write_text(path.read_text().replace("L", "I"))
    for file in (run.folder / "v2").iterdir():
        os.utime(file, (DISTANT_PAST, DISTANT_PAST))
    (run.folder / "data").unlink()
    (run.folder / "data").symlink_to("v2")


def another_order(run: Finished) -> None:
    run.config["samples"] = "{own: [data/b.faa, data/a.faa]}"


def older_checkpoint(run: Finished) -> None:
    other = run.folder / "other.pt"
    write_checkpoint(other, DEMO_ARCHITECTURE, seed=2, regression=False)
    os.utime(other, (DISTANT_PAST, DISTANT_PAST))
    other.replace(run.folder / "best.pt")


def layers_without_records(run: Finished) -> None:
    run.forget_snakemake()
    run.config["layers"] = 2


def precision_of_a_copy(run: Finished) -> None:
    run.forget_snakemake()
    run.config["precision"] = "bf16"


def chunk_size(run: Finished) -> None:
    run.config["chunk_residues"] = 2500


def future_dates(run: Finished) -> None:
    for file in run.folder.rglob("*"):
        if ".snakemake" not in file.parts:
            os.utime(file, (DISTANT_FUTURE, DISTANT_FUTURE), follow_symlinks=False)
    run.config["merge"] = "{dtype: float16}"


def lost_manifest(run: Finished) -> None:
    (run.results / "chunks" / "chunk_00001.json").unlink()


def lost_table(run: Finished) -> None:
    (run.folder / TABLE).unlink()


def lost_index_and_record(run: Finished) -> None:
    """With the record of the tables gone too, nothing but their names is left of what was asked for."""
    for name in ("proteins.parquet", "embeddings.json"):
        (run.sample / name).unlink()
    run.config["merge"] = "{dtype: float16}"


def flipped_index(run: Finished) -> None:
    flip(run.sample / "proteins.parquet", 600)


def flipped_table(run: Finished) -> None:
    flip(run.folder / TABLE, 3000)


def damaged_record(run: Finished) -> None:
    flip(run.results / "chunks" / "split.json", 200)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("a FASTA file is replaced by an older-dated one", older_sequences),
        ("a folder's link is turned to other files", link_elsewhere),
        ("a sample's files are given in another order", another_order),
        ("the checkpoint is replaced by an older-dated one of the same name", older_checkpoint),
        ("`.snakemake` is removed, then other layers", layers_without_records),
        ("`.snakemake` is removed, then another precision", precision_of_a_copy),
        ("another `chunk_residues`", chunk_size),
        ("everything is dated in the year 2096, then another `dtype`", future_dates),
        ("a chunk's manifest is lost", lost_manifest),
        ("the table is lost", lost_table),
        ("the index and the tables' record are lost, then another `dtype`", lost_index_and_record),
        ("a bit of the index flips", flipped_index),
        ("a bit of the table flips", flipped_table),
        ("a bit of the split's record flips", damaged_record),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_table_is_that_of_a_fresh_run(
    run: Finished, tmp_path: Path, what: str, change: Callable[[Finished], None]
) -> None:
    change(run)
    result = run.call(str(TABLE))
    assert result.code == 0, result.text
    assert run.table().equals(fresh(run, tmp_path / "fresh"))
    record(CONTENT, what, result.jobs)


def test_results_that_prove_themselves_are_kept(run: Finished, tmp_path: Path) -> None:
    """Copied without Snakemake's records, with other dates, prepared weights left behind."""
    shutil.copytree(run.folder, tmp_path / "elsewhere", symlinks=True, copy_function=shutil.copy)
    copied = Finished(tmp_path / "elsewhere", dict(CONFIG))
    copied.forget_snakemake()
    shutil.rmtree(copied.folder / "resources")
    result = copied.call()
    assert result.code == 0, result.text
    assert not result.jobs, result.text
    record(CONTENT, "results are copied elsewhere without `.snakemake` and `resources`", result.jobs)


def test_two_checkpoints_of_one_name_share_a_folder_of_weights(run: Finished, tmp_path: Path) -> None:
    write_inputs(tmp_path / "second")
    second = Finished(tmp_path / "second", {**CONFIG, "resources": run.folder / "resources"})
    write_checkpoint(second.folder / "best.pt", DEMO_ARCHITECTURE, seed=9, regression=False)
    result = second.call(str(TABLE))
    assert result.code == 0, result.text
    names = {path.name for path in (run.folder / "resources").iterdir()}
    assert len(names) == 2
    assert not second.table().equals(run.table())
    assert second.table().equals(fresh(second, tmp_path / "fresh"))


def test_a_flipped_byte_of_the_weights_is_never_embedded_with(run: Finished) -> None:
    (weights,) = (run.folder / "resources").glob("*.safetensors")
    flip(weights, weights.stat().st_size - 1000)
    before = run.table()
    chunk = "results/tensors/chunk_00000.safetensors"
    (run.folder / chunk).unlink()
    result = run.call(chunk)
    assert result.code != 0
    assert "are damaged (their numbers do not give their sha256): delete it" in result.text
    weights.unlink()
    result = run.call(str(TABLE), chunk)
    assert result.code == 0, result.text
    assert result.jobs["embed_esm2"] == 1
    assert run.table().equals(before)


def test_what_no_longer_belongs_is_removed_and_said(run: Finished) -> None:
    run.config["merge"] = "{formats: [parquet, npy]}"
    assert run.call().code == 0
    assert (run.sample / "embeddings_npy").is_dir()
    (run.folder / "later.faa").write_text(">x\nMKVLAAGIVGLCAKAYE\n")
    run.config |= {"merge": "{formats: [npy]}", "samples": "{own: [data/a.faa, data/b.faa], later: later.faa}"}
    result = run.call()
    assert result.code == 0, result.text
    assert "removed results/own/embeddings.parquet, which is of earlier settings or inputs" in result.text
    assert not (run.folder / TABLE).exists()
    run.config["samples"] = "{later: later.faa}"
    result = run.call()
    assert result.code == 0, result.text
    assert "results/own is of an earlier run and is left as it is" in result.text
    summary = (run.folder / "results" / "summary.tsv").read_text()
    assert "later" in summary
    assert "own" not in summary


@pytest.mark.parametrize("name", ["summary.html", "plots/packing.png", "own/plots/map.png", "chunks.tsv"])
def test_a_file_of_the_report_that_is_lost_comes_back(run: Finished, name: str) -> None:
    (run.folder / "results" / name).unlink()
    result = run.call()
    assert result.code == 0, result.text
    assert (run.folder / "results" / name).is_file()
    assert set(result.jobs) <= {"summarise", "plot_sample"}


def test_a_file_lost_in_a_tables_folder_comes_back(run: Finished) -> None:
    run.config["merge"] = "{formats: [virnucpro_pt], records_per_file: 5}"
    assert run.call().code == 0
    lost = run.sample / "virnucpro_pt" / "output_2_ESM.pt"
    before = lost.read_bytes()
    lost.unlink()
    result = run.call()
    assert result.code == 0, result.text
    assert result.jobs["merge_embeddings"] == 1
    assert result.jobs["embed_esm2"] == 0
    assert lost.read_bytes() == before


def test_a_part_of_the_run_says_which_tables_are_stale(run: Finished) -> None:
    run.config["layers"] = 2
    result = run.call("--until", "embed_esm2")
    assert result.code == 0, result.text
    assert "results/own: its tables are not what is asked for now (made from another layers asked for)" in result.text
