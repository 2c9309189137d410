"""What the plain package index gives, without this machine's own wheels (``make test-index``): on every Python that is
promised and found here, and with the lowest versions that pyproject.toml allows.

pip reads metadata alone (``--dry-run`` with range requests), so that no CUDA library is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "envs" / "constraints.txt"
PYTHONS = ("3.11", "3.12", "3.13")
LOWEST_PYTHON = PYTHONS[0]
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$|torch$")  # torch names the versions of its CUDA libraries itself
CAPTURED: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
EXAMPLE = ROOT / "examples" / "viral_proteins.faa"

pytestmark = pytest.mark.index


def plain_environment() -> dict[str, str]:
    """The environment without local wheels, other indexes and constraints of this machine's pip."""
    mine = ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "PIP_NO_INDEX", "PYTHONPATH")
    return {key: value for key, value in os.environ.items() if key not in mine} | {"PIP_CONFIG_FILE": os.devnull}


def pip(*arguments: str | Path, python: Path | None = None) -> subprocess.CompletedProcess[str]:
    chosen = () if python is None else ("--python", python)
    return subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *chosen, *arguments],
        cwd=ROOT,
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(autouse=True)
def _index_is_reached(tmp_path: Path) -> None:
    asked = pip("download", "--no-deps", "--retries", "0", "--timeout", "15", "--dest", tmp_path, "iniconfig")
    if asked.returncode != 0:
        pytest.skip("the package index cannot be reached")


def find_python(version: str) -> Path:
    """The interpreter of a version, on PATH or among pyenv's; skips the test where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    named = shutil.which(f"python{version}")
    found = [Path(named)] if named else []
    for candidate in [*found, *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]:
        asked = subprocess.run([candidate, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], **CAPTURED)
        if asked.stdout.strip() == version:  # pyenv's shims are there for versions that are not
            return candidate
    pytest.skip(f"Python {version} is not on this machine: not tried")


def resolve(python: Path, constraints: Path, extra: str, report: Path) -> dict[str, dict[str, Any]]:
    """What pip would install, by canonical name: an item of its installation report each."""
    done = pip(
        *("install", "--dry-run", "--ignore-installed", "--use-feature=fast-deps", "--report", report),
        *("-c", constraints, "-e", f".[{extra}]"),
        python=python,
    )
    assert done.returncode == 0, done.stderr
    items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {canonicalize_name(item["metadata"]["name"]): item for item in items}


def pins() -> dict[str, str]:
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    split = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in split}


def read_range(url: str, wanted: str) -> bytes:
    asked = urllib.request.Request(url, headers={"Range": f"bytes={wanted}"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        content: bytes = answer.read()
        return content


def sizes(item: dict[str, Any], folder: Path) -> tuple[int, int]:
    """Bytes of a wheel in the index, and unpacked: of its list of files alone, in a file with a hole for the rest."""
    url = item["download_info"]["url"]
    length, start = struct.unpack("<II", read_range(url, "-22")[12:20])  # a zip file's last record
    wheel = folder / item["metadata"]["name"]
    with wheel.open("wb") as file:
        file.seek(start)
        file.write(read_range(url, f"{start}-"))
    with zipfile.ZipFile(wheel) as opened:
        return start + length + 22, sum(each.file_size for each in opened.infolist())


def lowest_versions() -> dict[str, str]:
    """The lowest version of each package that running the workflow needs, as pyproject.toml promises it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    found: dict[str, str] = {}
    for line in [*project["dependencies"], *extras["data"], *extras["report"], *extras["workflow"]]:
        requirement = Requirement(line)
        if requirement.name != project["name"]:
            (found[canonicalize_name(requirement.name)],) = (
                each.version for each in requirement.specifier if each.operator == ">="
            )
    return found


def test_the_lowest_versions_resolve_and_run(tmp_path: Path) -> None:
    """All but torch are installed; torch, of gigabytes, is resolved in its lowest version and run in this one."""
    lowest = lowest_versions()
    (tmp_path / "lowest.txt").write_text("".join(f"{name}=={version}\n" for name, version in lowest.items()))
    python = find_python(LOWEST_PYTHON)
    found = resolve(python, tmp_path / "lowest.txt", "workflow", tmp_path / "report.json")
    for name in lowest:
        assert found[name]["download_info"]["url"].endswith(".whl"), f"{name} has no wheel for Python {LOWEST_PYTHON}"
    if sys.version_info[:2] != tuple(map(int, LOWEST_PYTHON.split("."))):
        pytest.skip(f"resolved, not run: the tests' own torch is not one for Python {LOWEST_PYTHON}")

    environment = tmp_path / "environment"
    subprocess.run([python, "-m", "venv", "--without-pip", environment], check=True)
    wanted = [
        f"{name}=={item['metadata']['version']}"
        for name, item in found.items()
        if name != "virnucpro" and not OF_TORCH.match(name)
    ]
    done = pip("install", "--no-deps", "--no-compile", *wanted, python=environment / "bin" / "python")
    assert done.returncode == 0, done.stderr
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    packages = next(environment.glob("lib/python*/site-packages"))
    for pattern in ("torch*", "nvidia*", "cuda*", "triton*"):
        for place in Path(spec.origin).parents[1].glob(pattern):
            (packages / place.name).symlink_to(place)

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [environment / "bin" / "python", "-m", *command],
            cwd=tmp_path,
            env=plain_environment() | {"PYTHONPATH": str(ROOT), "VIRNUCPRO_DISPLAY": ""},
            **CAPTURED,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        text: str = done.stdout + done.stderr
        return text

    run("virnucpro.cli", "embed", EXAMPLE, "--output", "out", "--model", "esm2_demo")
    workflow = ("snakemake", "--cores", "2", "-s", ROOT / "workflow" / "Snakefile")
    settings = (
        "--config",
        f"samples={EXAMPLE}",
        "model=esm2_demo",
        "merge={formats: [parquet, hdf5, npy, virnucpro_pt]}",
    )
    assert "Embedded " in run(*workflow, *settings)
    assert "Nothing to be done" in run(*workflow, *settings)
    submitted = run(*workflow, "--profile", ROOT / "slurm", "--forceall", "--dry-run", *settings)
    assert "embed_esm2" in submitted or "split_proteins" in submitted


@pytest.mark.parametrize("version", PYTHONS)
def test_the_environment_resolves(version: str, tmp_path: Path) -> None:
    found = resolve(find_python(version), CONSTRAINTS, "dev", tmp_path / "report.json")
    del found["virnucpro"]
    tested = pins()
    assert found["torch"]["metadata"]["version"] == tested["torch"]
    assert all(item["download_info"]["url"].startswith("https://") for item in found.values())
    floating = [name for name in found if name not in tested and not OF_TORCH.match(name)]
    assert not floating, f"not pinned in {CONSTRAINTS.name}"
    if version == LOWEST_PYTHON:
        assert set(tested) - {"pip"} <= set(found), "pinned, but nothing asks for it"
        wheels = [item for item in found.values() if item["download_info"]["url"].endswith(".whl")]
        with ThreadPoolExecutor(16) as threads:
            totals = map(sum, zip(*threads.map(lambda item: sizes(item, tmp_path), wheels), strict=True))
        page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
        (said,) = re.findall(r"([\d.]+) GB to download and\s+([\d.]+) GB unpacked", page)
        assert [float(each) for each in said] == pytest.approx([total / 1e9 for total in totals], abs=0.06)
