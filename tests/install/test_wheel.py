"""A wheel with nothing but what it declares: ``virnucpro embed`` runs, and what an extra would bring is named."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "viral_proteins.faa"


def declared(wheel: str) -> set[str]:
    """The packages that pip installs with a package, without extras."""
    found: set[str] = set()
    todo = [wheel]
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in found:
            found.add(name)
            wanted = map(Requirement, distribution(name).requires or [])
            todo += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found - {wheel}


def top_levels(name: str) -> set[str]:
    """What a package puts into site-packages."""
    files = distribution(name).files or []
    return {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Site-packages of a wheel built here, beside its own requirements and no other package."""
    folder = tmp_path_factory.mktemp("bare")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = tmp_path_factory.mktemp("wheels")
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT], check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", folder, wheel], check=True)
    (packages,) = {Path(str(distribution(name).locate_file(""))) for name in ("torch", "numpy")}
    for name in declared("virnucpro"):
        for place in top_levels(name):
            if not (folder / place).exists():
                (folder / place).symlink_to(packages / place)
    return folder


def virnucpro(bare: Path, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-m", "virnucpro.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(bare)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_embed_runs_with_what_the_wheel_declares(bare: Path, tmp_path: Path) -> None:
    done = virnucpro(bare, tmp_path, "embed", EXAMPLE, "--output", "out", "--model", "esm2_demo")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "embeddings.parquet").is_file()


def test_what_an_extra_brings_is_named_before_anything_is_computed(bare: Path, tmp_path: Path) -> None:
    done = virnucpro(
        bare, tmp_path, "embed", EXAMPLE, "-o", "out", "--model", "esm2_demo", "--formats", "parquet", "hdf5"
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert 'pip install "virnucpro[data]"' in done.stderr
    assert not (tmp_path / "out").exists()
