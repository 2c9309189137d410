"""What Snakemake offers beside running: generated unit tests, the catalog's file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.workflow.running import ROOT, snakemake

CARRIED = ("workflow", "virnucpro", "envs", "examples")
BITWISE = ("split_proteins", "prepare_weights", "merge_embeddings", "plot_sample")
"""Rules whose outputs are the same to the byte each time; an embed job's file holds the time that it took."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workflow whose config.yaml names a small sample and the demo model, run once."""
    folder = tmp_path_factory.mktemp("clone") / "virnucpro"
    for name in CARRIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "own.faa").write_text(">a\nMKVLAAGIV\n>b\nMKVX\n>c\nMKVX\n")
    (folder / "config.yaml").write_text("samples: own.faa\nmodel: esm2_demo\nchunk_residues: 10\n")
    result = snakemake(folder, snakefile=None)
    assert result.code == 0, result.text
    return folder


@pytest.mark.slow
def test_generated_unit_tests_pass(clone: Path) -> None:
    # In a process of its own: Snakemake takes the folder in which it was imported for the one that paths are seen from.
    result = snakemake(clone, "--generate-unit-tests", snakefile=None, within=["env"])
    assert result.code == 0, result.text
    tests = clone / ".tests" / "unit"
    assert (tests / "test_embed_esm2.py").is_file()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *(f"{tests}/test_{rule}.py" for rule in BITWISE),
        ],
        cwd=clone,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(BITWISE)} passed" in done.stdout


def test_the_catalog_s_file_is_right() -> None:
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["software-stack-deployment"]["conda"] is True
    assert usage["report"] is True
    for rule in (ROOT / "workflow" / "rules").glob("*.smk"):
        assert rule.read_text().count("conda:") == rule.read_text().count("script:"), f"{rule} has a rule without conda"
