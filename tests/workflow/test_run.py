"""The whole workflow on the shipped example: what it makes, and what a second call does and does not run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.workflow.running import EXAMPLE, ROOT, SNAKEFILE, Result, snakemake
from virnucpro.weights.manifest import read_manifest

DEMO = {"model": "esm2_demo", "chunk_residues": 6000}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder in which the shipped example has been embedded, and how that call ended."""
    folder = tmp_path_factory.mktemp("run")
    result = snakemake(folder, config=DEMO)
    assert result.code == 0, result.text
    return folder, result


@pytest.fixture
def again(finished: tuple[Path, Result], tmp_path: Path) -> Path:
    """A copy of the finished run, with its times and Snakemake's records."""
    folder = tmp_path / "again"
    shutil.copytree(finished[0], folder, symlinks=True)
    return folder


def example_ids() -> list[str]:
    return [line[1:].split()[0] for line in EXAMPLE.read_text().splitlines() if line.startswith(">")]


def sample(folder: Path) -> Path:
    return folder / "results" / "viral_proteins"


def chunks(folder: Path) -> list[Path]:
    return sorted((folder / "results" / "tensors").glob("*.safetensors"))


def test_one_row_for_every_protein_in_input_order(finished: tuple[Path, Result]) -> None:
    table = pd.read_parquet(sample(finished[0]) / "embeddings.parquet")
    assert list(table["id"]) == example_ids()
    matrix = np.stack(table["embedding"].to_list())
    assert matrix.shape == (len(table), 64)
    assert matrix.dtype == np.float32
    assert np.isfinite(matrix).all()


def test_every_step_ran_and_every_chunk_has_its_file(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    assert len(chunks(folder)) > 2
    assert result.jobs == Counter(
        prepare_weights=1,
        detect_gpu=1,
        split_proteins=1,
        embed_esm2=len(chunks(folder)),
        merge_embeddings=1,
        plot_sample=1,
        summarise=1,
    )


def test_the_demo_model_is_said_to_mean_nothing_everywhere(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    words = "mean nothing biologically"
    assert words in result.text
    assert words in (folder / "results" / "logs" / "prepare_weights.log").read_text()
    assert words in (folder / "results" / "summary.txt").read_text()
    metadata = pq.read_schema(sample(folder) / "embeddings.parquet").metadata
    assert words in b" ".join(metadata.values()).decode()
    assert words in (ROOT / "README.md").read_text()
    assert read_manifest(folder / "resources" / "esm2_demo.safetensors").demo


def test_the_closing_summary_says_what_was_done(finished: tuple[Path, Result]) -> None:
    result = finished[1]
    closing = result.text[result.text.index("Embedded") :]
    for words in (str(len(example_ids())), "tokens/s", "standard_attention", "float32", "embeddings.parquet"):
        assert words in closing, closing


def test_a_second_call_has_nothing_to_do(again: Path) -> None:
    result = snakemake(again, config=DEMO)
    assert result.code == 0
    assert "Nothing to be done" in result.text
    assert not result.jobs
    kept = json.loads((again / "results" / ".digests.json").read_text())
    read = {Path(key.rsplit(":", 4)[0]).name for key in kept}
    assert EXAMPLE.name in read, "the next call does not read it again"  # what was copied a moment ago may be


def test_a_chunk_file_that_is_gone_is_made_again_alone(again: Path) -> None:
    before = pq.read_table(sample(again) / "embeddings.parquet")
    chunks(again)[1].unlink()
    result = snakemake(again, config=DEMO)
    assert result.code == 0, result.text
    assert result.jobs == Counter(embed_esm2=1), "the table is what it would be"
    assert pq.read_table(sample(again) / "embeddings.parquet").equals(before)


def test_another_format_or_a_table_that_is_gone_costs_a_merge(again: Path) -> None:
    (sample(again) / "embeddings.parquet").unlink()
    result = snakemake(again, config={**DEMO, "merge": "{formats: [parquet, hdf5]}"})
    assert result.code == 0, result.text
    assert result.jobs == Counter(merge_embeddings=1, plot_sample=1, summarise=1)
    assert {"embeddings.parquet", "embeddings.h5"} <= {path.name for path in sample(again).iterdir()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set-threads", "embed_esm2=1", "merge_embeddings=2"],
        ["--set-resources", "embed_esm2:mem_mb=1234", "embed_esm2:runtime=5", "split_proteins:mem_mb=99"],
    ],
)
def test_other_threads_or_resources_recompute_nothing(again: Path, arguments: list[str]) -> None:
    result = snakemake(again, *arguments, config=DEMO)
    assert result.code == 0, result.text
    assert not result.jobs


@pytest.mark.parametrize("gone", ["results/gpu.json", "resources/esm2_demo.safetensors"])
def test_a_new_gpu_report_or_the_same_weights_make_no_chunk_stale(again: Path, gone: str) -> None:
    (again / gone).unlink()
    result = snakemake(again, config=DEMO)
    assert result.code == 0, result.text
    assert result.jobs["embed_esm2"] == 0, result.text
    (again / "results/gpu.json").touch()
    assert snakemake(again, config=DEMO).jobs["embed_esm2"] == 0


def test_a_touched_fasta_costs_no_embedding(tmp_path: Path) -> None:
    own = tmp_path / "own.faa"
    own.write_text(EXAMPLE.read_text())
    config = {**DEMO, "samples": own}
    assert snakemake(tmp_path, config=config).code == 0
    own.write_text(EXAMPLE.read_text() + ">one_more\nMKVLAAGIV\n")
    result = snakemake(tmp_path, config=config)
    assert result.code == 0, result.text
    assert 0 < result.jobs["embed_esm2"] < len(chunks(tmp_path))
    table = pd.read_parquet(tmp_path / "results" / "own" / "embeddings.parquet")
    assert list(table["id"]) == [*example_ids(), "one_more"]


def test_another_sample_embeds_that_sample_only(again: Path) -> None:
    (again / "second.faa").write_text(">a\nMKV\n>b\nMKVL\n")
    config = {**DEMO, "samples": f"{EXAMPLE},second.faa"}
    result = snakemake(again, config=config)
    assert result.code == 0, result.text
    assert result.jobs == Counter(
        split_proteins=1, embed_esm2=1, merge_embeddings=1, plot_sample=1, map_samples=1, summarise=1
    )


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("precision", "bf16"),
        pytest.param("layers", 2, marks=pytest.mark.slow),
        pytest.param("pooling", "per_residue", marks=pytest.mark.slow),
    ],
)
def test_another_layer_precision_or_pooling_recomputes(again: Path, change: str, value: object) -> None:
    number = len(chunks(again))
    result = snakemake(again, config={**DEMO, change: value})
    assert result.code == 0, result.text
    assert result.jobs == Counter(embed_esm2=number, merge_embeddings=1, plot_sample=1, summarise=1)


def test_one_s_own_file_from_the_root_by_the_documented_command(tmp_path: Path) -> None:
    own = tmp_path / "my.faa"
    own.write_text(">p1 first\nMKVLAAGIV\n>p2\nmkvx\n")
    result = snakemake(
        ROOT, "--directory", str(tmp_path), snakefile=None, config={"samples": own, "model": "esm2_demo"}
    )
    assert result.code == 0, result.text
    assert list(pd.read_parquet(tmp_path / "results/my/embeddings.parquet")["id"]) == ["p1", "p2"]


def test_as_a_module_of_another_workflow(tmp_path: Path) -> None:
    (tmp_path / "mine.faa").write_text(">p1\nMKVLAAGIV\n>p2\nMKVX\n")
    (tmp_path / "Snakefile").write_text(
        f"""
module embedding:
    snakefile: "{SNAKEFILE}"
    config: {{"samples": "mine.faa", "model": "esm2_demo", "results": "out"}}

use rule * from embedding as embedding_*

rule everything:
    default_target: True
    input: rules.embedding_all.input
    output: "done.txt"
    shell: "echo done > {{output}}"
"""
    )
    result = snakemake(tmp_path, snakefile=tmp_path / "Snakefile")
    assert result.code == 0, result.text
    assert list(pd.read_parquet(tmp_path / "out/mine/embeddings.parquet")["id"]) == ["p1", "p2"]
    assert (tmp_path / "done.txt").exists()


def test_a_clone_and_its_environment_in_a_path_with_a_space(tmp_path: Path) -> None:
    clone = tmp_path / "my clone"
    for name in ("workflow", "virnucpro", "envs"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    (clone / ".venv").symlink_to(sys.prefix)
    (clone / "own.faa").write_text(">p1\nMKVLAAGIV\n>p2\nMKVX\n")
    table = "results/own/embeddings.parquet"
    done = subprocess.run(
        [
            clone / ".venv/bin/python",
            "-m",
            "snakemake",
            "--cores",
            "1",
            table,
            "--config",
            "samples=own.faa",
            "model=esm2_demo",
        ],
        cwd=clone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(pd.read_parquet(clone / table)["id"]) == ["p1", "p2"]
