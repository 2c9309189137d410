"""Settings in the real Snakemake: where they are read, in which order, and that they stay what was written."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.workflow.running import ROOT, Result, snakemake
from virnucpro.base.records import read_record
from virnucpro.storage.report_record import SampleReport

FASTA = ">a\nMKVLAAGIV\n>b\nMKVX\n"
PARTS = ("workflow", "virnucpro", "envs")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose user has changed its config.yaml."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in PARTS:
        (folder / name).symlink_to(ROOT / name)
    (folder / "config.yaml").write_text("samples: in_clone.faa\nmodel: esm2_demo\nresults: of_the_clone\n")
    (folder / "in_clone.faa").write_text(FASTA)
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "own.faa").write_text(FASTA)
    return folder


def dry(here: Path, clone: Path, *arguments: str, **config: str) -> Result:
    result = snakemake(
        here, "--dry-run", "--quiet", "rules", *arguments, config=config, snakefile=clone / "workflow" / "Snakefile"
    )
    assert "Traceback" not in result.text, result.text
    return result


def test_one_order_of_sources_and_the_log_says_which_were_read(here: Path, clone: Path) -> None:
    result = dry(here, clone)
    assert f"Settings: {clone}/config.yaml; the rest" in result.text
    assert "in_clone: 2 proteins, 13 residues" in result.text

    result = dry(here, clone, "--summary", samples="own.faa")
    assert f"Settings: {clone}/config.yaml, --config; the rest" in result.text
    assert "of_the_clone/own/embeddings.parquet" in result.text, "the clone's config.yaml was dropped"

    (here / "config.yaml").write_text("samples: {007: own.faa}\nmodel: esm2_demo\n")
    (here / "more.yaml").write_text("results: 2024\nmerge: {formats: npy}\n")
    result = dry(here, clone, "--configfile", "more.yaml", "--summary")
    assert f"Settings: config.yaml, {here}/more.yaml; the rest" in result.text
    assert "2024/007/embeddings_npy" in result.text

    result = dry(here, clone, "--summary", "--configfile", "more.yaml", samples="{no: own.faa}", results="010")
    assert f"{here}/more.yaml, --config; the rest" in result.text
    assert "010/no/embeddings_npy" in result.text
    assert "007" not in result.text


def test_a_sample_in_the_working_folder_and_in_the_clone_is_not_guessed(here: Path, clone: Path) -> None:
    (here / "in_clone.faa").write_text(FASTA.lower())
    result = dry(here, clone)
    assert result.code == 1
    assert f"in_clone.faa is both in the working folder and in {clone}" in result.text
    result = dry(here, clone, samples="in_clone.faa")  # said on the command line, so it is the one here
    assert result.code == 0, result.text


def test_names_of_digits_stay_in_every_job(here: Path) -> None:
    result = snakemake(here, config={"samples": "{007: own.faa}", "results": "010", "model": "esm2_demo"})
    assert result.code == 0, result.text
    assert (here / "010/007/embeddings.parquet").is_file()
    assert not (here / "8").exists()
    command = read_record(here / "010/007/embeddings.json", SampleReport).provenance.command
    assert {'samples={"007": "own.faa"}', "results=010", "model=esm2_demo"} <= set(shlex.split(command))


def test_a_wrong_config_file_is_one_sentence(here: Path) -> None:
    for text, words in (
        ("- a\n- b\n", "config.yaml must hold settings"),
        ("samples: {a: own.faa, a: own.faa}\n", "the key 'a' is there twice"),
        ("", "no sample is given"),
    ):
        (here / "config.yaml").write_text(text)
        result = snakemake(here, "--dry-run")
        assert result.code == 1
        (line,) = [line for line in result.text.splitlines() if "error: " in line]
        assert words in line
        assert "Traceback" not in result.text


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workflow in a Git repository of its own, without the package, which is installed."""
    folder = tmp_path_factory.mktemp("server") / "me" / "virnucpro"
    for name in ("workflow", "envs"):
        shutil.copytree(ROOT / name, folder / name)
    identity = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    for words in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-qm", "all"), ("tag", "v1")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def module(here: Path, source: str, *arguments: str, **env: str) -> Result:
    (here / "Snakefile").write_text(
        f'module embedding:\n    snakefile: {source}\n    config: {{"samples": "own.faa", "model": "esm2_demo"}}\n\n'
        "use rule * from embedding\n"
    )
    (here / "config.yaml").write_text("of: another workflow\n")
    # The package is found as where it is installed.
    env = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")])), **env}
    return snakemake(here, *arguments, snakefile=None, env=env)


def test_as_a_module_from_a_git_repository(here: Path, repository: Path) -> None:
    source = f'gitfile("{repository}", path="workflow/Snakefile", tag="v1")'
    result = module(here, source)
    assert result.code == 0, result.text
    assert (here / "results/own/embeddings.parquet").is_file()
    assert "Settings: the module's config;" in result.text
    result = module(here, source, "--dry-run")
    assert "Nothing to be done" in result.text


def test_as_a_module_from_a_server(here: Path, repository: Path, tmp_path: Path) -> None:
    env = {  # Git takes our folder for github.com
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{repository.parents[1]}/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
    }
    source = 'github("me/virnucpro", path="workflow/Snakefile", tag="v1")'
    result = module(here, source, "--dry-run", "--quiet", "rules", **env)
    assert result.code == 0, result.text
    assert "\nown: 2 proteins" in result.text


def test_a_module_whose_package_is_not_installed(here: Path, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "none" / "virnucpro").mkdir(parents=True)
    (tmp_path / "none" / "virnucpro" / "__init__.py").write_text("raise ImportError('No module named virnucpro')\n")
    source = f'gitfile("{repository}", path="workflow/Snakefile", tag="v1")'
    result = module(here, source, "--dry-run", PYTHONPATH=str(tmp_path / "none"))
    assert result.code == 1
    (line,) = [line for line in result.text.splitlines() if "error: " in line]
    assert "needs the package virnucpro" in line
    assert "pip install" in line
    assert "Traceback" not in result.text
