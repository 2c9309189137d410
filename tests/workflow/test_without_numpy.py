"""A Python with Snakemake and nothing else, as on a head node whose rules run in conda environments: it plans."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.workflow.running import EXAMPLE, SNAKEFILE, snakemake

NOT_THERE = ("numpy", "torch", "pandas", "pyarrow", "safetensors", "esm", "fair_esm", "h5py", "matplotlib", "triton")
NEEDS_PANDAS = ("snakemake_executor_plugin_slurm",)
SETTINGS = {"samples": EXAMPLE, "model": "esm2_demo", "chunk_residues": 5000}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the installed packages without those that only the rules' environments have."""
    folder = tmp_path_factory.mktemp("bare")
    left_out = (*NOT_THERE, *NEEDS_PANDAS)
    for place in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if place.name.split("-")[0].split(".")[0] not in left_out and place.suffix != ".pth":
            (folder / place.name).symlink_to(place)
    return folder


def dry_run(bare: Path, folder: Path) -> str:
    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    command = [sys.executable, "-S", "-m", "snakemake", "--cores", "2", "-s", str(SNAKEFILE), "--dry-run"]
    environment = {**os.environ, "PYTHONPATH": str(bare)}
    done = subprocess.run(
        [*command, "--config", *settings], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_is_left_out_is_not_there(bare: Path) -> None:
    for name in NOT_THERE:
        command = [sys.executable, "-S", "-c", f"import {name}"]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(bare)}, capture_output=True, check=False)
        assert b"ModuleNotFoundError" in done.stderr, name


def test_a_dry_run_needs_snakemake_alone(bare: Path, tmp_path: Path) -> None:
    assert "not split yet" in dry_run(bare, tmp_path)
    done = snakemake(tmp_path, config=SETTINGS)
    assert done.code == 0, done.text
    assert "Nothing to be done" in dry_run(bare, tmp_path)
    chunk = min(tmp_path.glob("results/tensors/*.safetensors"))
    chunk.unlink()
    said = dry_run(bare, tmp_path)
    assert "1 to embed" in said
    assert "such as did the finished chunks" in said
