"""The container files, as far as they can be held where none can be built: what they copy, and with which versions."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.install.test_resolution import pins
from tests.install.test_wheel import ROOT

DOCKER, APPTAINER = (ROOT / "envs" / name for name in ("Dockerfile", "apptainer.def"))


def copies(text: str) -> dict[str, str]:
    """What is copied, by the name in the clone, and where to."""
    found: dict[str, str] = {}
    for line in re.findall(r"^(?:COPY| {4})\s*(\S.* /opt/virnucpro\S*)$", text, re.MULTILINE):
        *names, target = line.split()
        found |= {name: target if len(names) == 1 else f"{target}{name}" for name in names if name != "pip"}
    return found


def test_both_are_the_same_and_of_the_constraints() -> None:
    docker, apptainer = DOCKER.read_text(), APPTAINER.read_text()
    (base,) = re.findall(r"^FROM (\S+)$", docker, re.MULTILINE)
    assert f"From: {base}\n" in apptainer
    (install,) = re.findall(r"^RUN (pip install .*)$", docker, re.MULTILINE)
    assert f"    {install}\n" in apptainer
    assert "-c /opt/virnucpro/envs/constraints.txt" in install
    assert "[workflow]" in install
    assert copies(docker) == copies(apptainer)
    assert "torch" in pins()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert base.startswith(f"python:{project['requires-python'].removeprefix('>=')}-")


def test_what_is_copied_is_enough_for_the_wheel(tmp_path: Path) -> None:
    for name, target in copies(DOCKER.read_text()).items():
        source, place = ROOT / name, tmp_path / Path(target).relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"]
    clone = tmp_path / "opt" / "virnucpro"
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, clone], check=True)
    assert list(tmp_path.glob("virnucpro-*.whl"))
