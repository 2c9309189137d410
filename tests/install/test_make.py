"""The Makefile in a clone of its own, in a folder with a space, with a stub of the package indexes: no network."""

from __future__ import annotations

import ensurepip
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

# A build backend of the standard library alone: an editable wheel that says what it needs.
BACKEND = """\
from zipfile import ZipFile

def get_requires_for_build_editable(config_settings=None):
    return []

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "virnucpro-0-py3-none-any.whl"
    with ZipFile(f"{folder}/{name}", "w") as wheel:
        info = "virnucpro-0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: virnucpro\\nVersion: 0\\n"
                       "Provides-Extra: dev\\nRequires-Dist: torch>=2.6\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


def add_torch(index: Path, version: str) -> None:
    """A wheel that is called torch, in a simple index (PEP 503)."""
    folder = index / "torch"
    folder.mkdir(parents=True)
    name = f"torch-{version}-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        info = f"torch-{version}.dist-info"
        wheel.writestr("torch.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"torch.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    (folder / "index.html").write_text(f'<a href="{name.replace("+", "%2B")}">{name}</a>')


class Clone:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a clone"
        (self.folder / "envs").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", self.folder)
        (self.folder / "pyproject.toml").write_text(PYPROJECT)
        (self.folder / "backend.py").write_text(BACKEND)
        (self.folder / "envs" / "constraints.txt").write_text(f"pip=={ensurepip.version()}\ntorch==2.13.0\n")
        for build, version in (("pypi", "2.13.0"), ("cpu", "2.13.0+cpu")):
            add_torch(folder / "index" / build, version)
        self.index = (folder / "index").as_uri()

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
        environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"{self.index}/pypi"}
        return subprocess.run(
            ["make", *arguments, f"TORCH_INDEX={self.index}", f"PYTHON={sys.executable}"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def environment(self, *arguments: str) -> str:
        """The version of torch in the environment after ``make env``."""
        done = self.make("env", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        code = "import torch; print(torch.version)"
        return subprocess.check_output([self.folder / ".venv/bin/python", "-c", code], text=True).strip()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_the_build_of_torch_is_chosen_kept_and_changed(clone: Clone) -> None:
    assert clone.environment("TORCH=cpu") == "2.13.0+cpu"
    assert "Nothing to be done" in clone.make("env").stdout
    assert "Nothing to be done" in clone.make("env", "TORCH=cpu").stdout
    os.utime(clone.folder / "pyproject.toml", (2**31, 2**31))
    assert clone.environment() == "2.13.0+cpu", "an environment keeps its build"
    os.utime(clone.folder / "pyproject.toml", (0, 0))
    assert clone.environment("TORCH=pypi") == "2.13.0"
    assert "Nothing to be done" in clone.make("env").stdout


def test_a_build_that_is_not_there_is_no_other_build(clone: Clone) -> None:
    done = clone.make("env", "TORCH=cu999")
    assert done.returncode != 0
    assert "cu999" in done.stderr
    assert clone.make("env", "--question").returncode != 0, "it is not taken for finished"


def test_clean_removes_what_make_made_and_nothing_of_the_users(clone: Clone) -> None:
    yours = [Path("results/my/embeddings.parquet"), Path("resources/best.safetensors"), Path(".snakemake/metadata/x")]
    made = [
        Path(".venv/.ready"),
        Path("demo/results/summary.tsv"),
        Path("tests/__pycache__/x.pyc"),
        Path(".mypy_cache/x"),
    ]
    for path in [*yours, *made, Path("workflow/x"), Path("virnucpro/x")]:
        (clone.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (clone.folder / path).touch()
    for _ in range(2):
        done = clone.make("clean")
        assert done.returncode == 0, done.stderr
    assert [path for path in made if (clone.folder / path).exists()] == []
    assert [path for path in yours if not (clone.folder / path).exists()] == []


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root writes everywhere")
def test_a_clone_that_cannot_be_written_to_says_so(clone: Clone) -> None:
    for path in (clone.folder.parents[0], clone.folder):
        path.chmod(0o555)
    for parent in list(clone.folder.parents)[:-2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    as_other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    try:
        for target, sentence in (("env", "cannot be written to: copy it"), ("demo", "cannot be written to: copy it")):
            done = subprocess.run(
                [*as_other, "make", target, "PYTHON=/usr/bin/python3"], cwd=clone.folder, capture_output=True, text=True
            )
            assert done.returncode != 0
            assert sentence in done.stdout + done.stderr
    finally:
        for path in (clone.folder.parents[0], clone.folder):
            path.chmod(0o755)
