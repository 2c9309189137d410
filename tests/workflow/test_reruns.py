"""What makes finished work stale: other settings and models, and not a new release or a changed conda environment.

Dry runs in a copy of the repository, which was edited after its run had ended.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workflow.running import ROOT, Result, snakemake
from tests.workflow.test_conda import stand_in
from virnucpro.models.esm2.sizes import DEMO_ARCHITECTURE
from virnucpro.models.esm2.synthetic import write_checkpoint

CARRIED = ("workflow", "virnucpro", "envs")
DEFAULT = "workflow specific profile workflow/profiles/default"
CHUNKS = 2
CONDA = ("--software-deployment-method", "conda")


@dataclass(frozen=True)
class Clone:
    """A copy of the repository, and the folder of a stand-in for conda beside it."""

    folder: Path

    def call(self, *arguments: str, **config: object) -> Result:
        """The command of the docs, from the root."""
        conda = str(self.folder.parent / "conda" / "bin")
        env = {"PATH": os.pathsep.join([conda, os.environ["PATH"]])}
        result = snakemake(self.folder, *arguments, snakefile=None, config=config, env=env)
        assert result.code == 0, result.text
        return result

    def dry(self, *arguments: str, **config: object) -> Result:
        """What that command would do; nothing changes, so the tests share the folder."""
        return self.call("--dry-run", *arguments, **config)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A finished run, in conda environments; the weights of a second model were prepared before it."""
    clone = Clone(tmp_path_factory.mktemp("clone") / "virnucpro")
    folder = clone.folder
    stand_in(folder.parent / "conda")
    for name in CARRIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "slurm").symlink_to("workflow/profiles/slurm")
    (folder / "own.faa").write_text(">a\nMKVLAAGIV\n>b\nMKVX\n>c\nMKLLAG\n")
    (folder / "config.yaml").write_text("samples: own.faa\nmodel: one.pt\nchunk_residues: 10\n")
    for seed, model in enumerate(("one", "other")):
        write_checkpoint(folder / f"{model}.pt", DEMO_ARCHITECTURE, seed=seed)
    clone.call("--until", "prepare_weights", model="other.pt")
    assert clone.call(*CONDA).jobs["embed_esm2"] == CHUNKS
    return clone


def append(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text(encoding='utf-8')}{line}\n", encoding="utf-8")


@pytest.fixture(scope="module")
def upgraded(clone: Clone) -> Clone:
    """The same folder after a new release, in which the script of the embed jobs has one more line."""
    append(clone.folder / "workflow" / "scripts" / "embed_esm2.py", "RELEASE = 2")
    return clone


@pytest.mark.parametrize(
    ("arguments", "profiles"),
    [
        ([], f"Using {DEFAULT} "),
        (["--profile", "slurm"], f"Using profiles slurm and {DEFAULT} "),
        (["--profile", "slurm", "--workflow-profile", "none"], "Using profile slurm "),
        (["results/own/embeddings.json"], f"Using {DEFAULT} "),
    ],
    ids=["no profile named", "slurm", "slurm alone", "a target"],
)
def test_a_new_release_recomputes_nothing(upgraded: Clone, arguments: list[str], profiles: str) -> None:
    result = upgraded.dry(*arguments)
    assert profiles in result.text
    assert "Nothing to be done" in result.text
    assert not result.jobs


@pytest.mark.parametrize("arguments", [["--rerun-triggers", "code"], [*CONDA, "--workflow-profile", "none"]])
def test_without_the_profile_a_new_release_recomputes_the_chunks(upgraded: Clone, arguments: list[str]) -> None:
    assert upgraded.dry(*arguments).jobs["embed_esm2"] == CHUNKS


def test_a_step_can_be_asked_for(upgraded: Clone) -> None:
    result = upgraded.dry("--forcerun", "embed_esm2")
    assert result.jobs == Counter(embed_esm2=CHUNKS, merge_embeddings=1, plot_sample=1, summarise=1)


@pytest.mark.parametrize("setting", [{"precision": "bf16"}, {"layers": 2}])
def test_another_precision_or_layer_still_recomputes_the_chunks(upgraded: Clone, setting: dict[str, object]) -> None:
    result = upgraded.dry(**setting)
    assert result.jobs == Counter(embed_esm2=CHUNKS, merge_embeddings=1, plot_sample=1, summarise=1)


def test_another_model_still_recomputes_the_chunks(upgraded: Clone) -> None:
    """Its weights are older than the chunks: their content tells."""
    assert upgraded.dry(model="other.pt").jobs["embed_esm2"] == CHUNKS


def test_a_changed_conda_environment_recomputes_nothing(clone: Clone) -> None:
    append(clone.folder / "envs" / "embed.yaml", "# another build")
    assert not clone.dry(*CONDA).jobs
    assert not clone.dry().jobs, "nor without conda"
    assert clone.dry(*CONDA, "--rerun-triggers", "software-env").jobs, "Snakemake itself does see that it changed"
