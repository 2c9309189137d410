"""``virnucpro run`` of a wheel, away from the clone: what the wheel holds, and the command that it makes."""

from __future__ import annotations

import argparse
import re
import tarfile
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.install.test_wheel import ROOT, bare, virnucpro
from virnucpro import cli, launch
from virnucpro.base.errors import UserError
from virnucpro.config_files import read_arguments, read_file

__all__ = ["bare"]  # pytest finds the fixture here


def given(*arguments: str) -> argparse.Namespace:
    return cli._parsed(["run", *arguments])


def test_the_wheel_holds_the_workflow_with_its_settings_and_profiles(bare: Path) -> None:
    shipped = bare / "virnucpro" / "shipped"
    for folder in ("workflow", "envs", "examples", "docs"):
        wanted = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
        found = {path.relative_to(shipped) for path in (shipped / folder).rglob("*") if path.is_file()}
        assert {path for path in wanted if "__pycache__" not in path.parts} == found
    assert (shipped / "config.yaml").read_bytes() == (ROOT / "config.yaml").read_bytes()


def test_run_and_init_of_a_wheel(bare: Path, tmp_path: Path) -> None:
    done = virnucpro(bare, tmp_path, "init", "own.faa")
    assert done.returncode == 0, done.stderr
    assert read_file(tmp_path / "config.yaml")["samples"] == "own.faa"
    done = virnucpro(bare, tmp_path, "run")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith('pip install "virnucpro[workflow]"')


def test_the_pages_that_sentences_name_come_with_the_wheel(bare: Path, tmp_path: Path) -> None:
    """The project has no public address that could be named in their place."""
    texts = [path.read_text() for path in (bare / "virnucpro").rglob("*") if path.suffix in (".py", ".yaml", ".rst")]
    named = set().union(*(re.findall(r"\(docs/(\w+)\.md", text) for text in texts))
    assert {"models", "settings"} <= named
    listed = virnucpro(bare, tmp_path, "docs").stdout.splitlines()
    assert named <= {line.split()[0] for line in listed}
    assert Path(listed[-1].removeprefix("These pages are in ")).is_relative_to(bare)
    assert virnucpro(bare, tmp_path, "docs", "models").stdout == (ROOT / "docs" / "models.md").read_text()
    unknown = virnucpro(bare, tmp_path, "docs", "modles")
    assert unknown.returncode == 1
    assert "there is no page 'modles': README, accuracy" in unknown.stderr.splitlines()[-1]


def test_the_extra_brings_what_snakemakes_report_needs() -> None:
    """The last line of a run recommends ``--report``."""
    wanted = [Requirement(each) for each in distribution("snakemake").requires or []]
    needed = {each.name.lower() for each in wanted if each.marker and each.marker.evaluate({"extra": "reports"})}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "pygments" in needed
    assert needed <= {Requirement(each).name.lower() for each in project["optional-dependencies"]["workflow"]} | {
        each.name.lower() for each in wanted if each.marker is None
    }


def test_what_is_asked_for_becomes_snakemakes_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.pt").touch()
    Path("m.tsv").touch()
    text = "--model m.pt --layers 0 last --formats npy --cores 3 --long-proteins truncate --gpus 2 --directory out "
    text += "--metadata m.tsv --reuse old earlier/*"
    asked = given("a.faa", "b c.faa", *text.split(), "--", "--report", "r.html")
    command = launch.snakemake_command(asked)
    settings = read_arguments(command[command.index("--config") + 1 : command.index("--report")])
    assert settings == {
        "samples": [str(tmp_path / "a.faa"), str(tmp_path / "b c.faa")],
        "model": str(tmp_path / "m.pt"),
        "metadata": str(tmp_path / "m.tsv"),
        "reuse": [str(tmp_path / "old"), str(tmp_path / "earlier/*")],
        "layers": ["0", "last"],
        "long_proteins": {"policy": "truncate"},
        "merge": {"formats": ["npy"]},
    }
    assert command[:6] == ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "3", "--resources", "gpu=2"]
    assert command[-2:] == ["--report", "r.html"]
    command = launch.snakemake_command(given("a.faa", "--slurm"))
    assert command[2:4] == ["--profile", str(ROOT / "workflow" / "profiles" / "slurm")]
    assert "--cores" not in command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], ["no FASTA file is named", "virnucpro init"]), (["a.faa", "--layers", "x"], ["layers", "'x'"])],
)
def test_mistakes_of_run(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        launch.snakemake_command(given(*arguments))
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_config_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["init", "a.faa", "b.faa"])
    assert read_file(tmp_path / "config.yaml")["samples"] == ["a.faa", "b.faa"]
    with pytest.raises(SystemExit):
        cli.main(["init"])


def test_an_sdist_has_the_slurm_profile_in_its_place(tmp_path: Path) -> None:
    """Its folder has two names, of which the build backend would take the other one."""
    hatchling = pytest.importorskip("hatchling.builders.sdist")
    (built,) = hatchling.SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(built) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"workflow/profiles/slurm/config.v9+.yaml", "workflow/Snakefile", "tests/conftest.py"} <= names
