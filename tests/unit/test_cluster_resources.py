"""What Snakemake would ask Slurm for: read off real dry runs of a small workflow, and, for clusters of other kinds,
from what is worked out for a job.

In the dry runs ``sinfo`` is a stand-in that prints a given cluster, and ``squeue`` one without which the Slurm plugin
refuses to load; Snakemake and its resources are real.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_executor_plugin_slurm import ExecutorSettings  # type: ignore[import-untyped]

from virnucpro.slurm.cluster import Cluster, JobSize, parse_groups
from virnucpro.slurm.resources import Advice, plugin_chooses_partitions

ROOT = Path(__file__).parents[2]

NODES = """\
cpu*|up|avx512|(null)|16000|4
gpu|up|ampere,fast|gpu:a100:1|16000|16
gpu|up|hopper|gpu:h100:4|64000|16
gpu|up|turing|gpu:rtx2080ti:2|64000|16
"""

SNAKEFILE = """
import sys
sys.path.insert(0, "{root}")
from virnucpro.slurm.resources import slurm_resources

RULES = {rules}
GPU_JOB = slurm_resources(workflow)

rule all:
    input: expand("{{name}}.out", name=RULES)

for name, memory in RULES.items():
    rule:
        name: name
        output: f"{{name}}.out"
        threads: 2
        resources:
            **GPU_JOB,
            gpu=1,
            mem_mb=lambda wildcards, attempt, memory=memory: attempt * memory,
        shell: "touch {{output}}"
"""

SET_BY_THE_USER: dict[str, tuple[list[str], str | None]] = {
    "more_memory": (["mem_mb=30000"], "--prefer=hopper"),
    "two_gpus": (["gpu=2"], "--prefer=hopper"),
    "a_gpu_type": (["gpu=0", "gres='gpu:a100:1'"], "--prefer=ampere"),
    "a_constraint": (["constraint='turing'"], None),
    "a_partition": (["slurm_partition=cpu"], None),
    "own_options": (["slurm_extra='--nice=5'"], "--nice=5"),
}
"""For each rule: what the user sets for it, and the options that follow."""

Jobs = dict[str, dict[str, str]]


class Dry:
    """A folder with the workflow and stand-ins for Slurm's programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        (self.programs / "nodes").write_text(NODES)
        self._program(
            "sinfo",
            f'echo called >> {folder}/calls\n[ "$1" = --version ] && echo slurm 23.02.1 || cat {self.programs}/nodes',
        )
        self._program("squeue", "echo slurm 23.02.1")

    def _program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.programs / name).chmod(0o755)

    def run(self, rules: dict[str, int], *arguments: str, path: str | None = None) -> tuple[Jobs, str]:
        """Each job's resources by its rule, and all of the text; ``rules`` gives the memory (MB) of each."""
        (self.folder / "Snakefile").write_text(SNAKEFILE.format(root=ROOT, rules=rules))
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "4", *arguments],
            cwd=self.folder,
            env=os.environ | {"PATH": path or f"{self.programs}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        text = done.stdout + done.stderr
        assert done.returncode == 0, text
        jobs = {}
        for name, job in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", text, flags=re.MULTILINE):
            resources = re.search(r"resources: (.*)", job)
            if name in rules and resources:
                jobs[name] = dict(part.split("=", 1) for part in resources[1].split(", "))
        assert set(jobs) == set(rules), text
        return jobs, text


@pytest.fixture
def dry(tmp_path: Path) -> Dry:
    return Dry(tmp_path)


def test_newer_gpus_of_nodes_that_can_hold_each_job_and_what_the_user_sets_wins(dry: Dry) -> None:
    rules = {"small": 4000, "large": 40000, **dict.fromkeys(SET_BY_THE_USER, 4000)}
    chosen = [f"{name}:{setting}" for name, (settings, *_) in SET_BY_THE_USER.items() for setting in settings]
    partition = ("--default-resources", "slurm_partition=gpu")
    jobs, text = dry.run(rules, "--dry-run", "--set-resources", *chosen, *partition)
    assert jobs["small"]["slurm_partition"] == "gpu"
    assert jobs["small"]["slurm_extra"] == "--prefer='ampere|hopper'"
    assert jobs["large"]["slurm_extra"] == "--prefer=hopper", "40 GB: no ampere node can hold it"
    assert text.count("Ampere or newer where available") == 1
    assert (dry.folder / "calls").read_text().count("called") == 2, "one question, and the version"
    for name, (_, extra) in SET_BY_THE_USER.items():
        assert jobs[name].get("slurm_extra") == extra, name


def test_the_users_defaults_are_kept(dry: Dry) -> None:
    defaults = ("--default-resources", "slurm_partition=gpu", "slurm_extra='--nice=5'")
    (job,) = dry.run({"small": 4000}, "--dry-run", *defaults)[0].values()
    assert job["slurm_partition"] == "gpu"
    assert job["slurm_extra"] == "--nice=5 --prefer='ampere|hopper'"


def test_nothing_extra_in_a_run_on_this_machine(dry: Dry) -> None:
    jobs, text = dry.run({"small": 4000})
    assert not {"slurm_extra", "slurm_partition"} & set(jobs["small"])
    assert not (dry.folder / "calls").exists(), "sinfo was not even asked"
    assert "GPU jobs" not in text


def test_a_machine_without_slurm_needs_none_of_its_programs(dry: Dry) -> None:
    """The Slurm plugin is installed everywhere; where there is no Slurm it must stand in nobody's way."""
    few = dry.folder / "few"
    few.mkdir()
    for name in ("bash", "sh", "env", "cat", "touch", "rm", "mkdir", "which", "uname", "hostname"):
        for folder in ("/usr/bin", "/bin"):
            if (Path(folder) / name).exists() and not (few / name).exists():
                (few / name).symlink_to(Path(folder) / name)
    jobs, _ = dry.run({"small": 4000}, path=str(few))
    assert not {"slurm_extra", "slurm_partition"} & set(jobs["small"])
    assert (dry.folder / "small.out").exists()


def advice(nodes: str | None, version: tuple[int, int] = (23, 2), also: tuple[str, ...] = ()) -> Advice:
    """For a cluster with these nodes; None where sinfo gave no answer."""
    found = Advice(also)
    found.cluster = None if nodes is None else Cluster(version, tuple(parse_groups(nodes)))
    return found


SMALL = JobSize(gpus=1, memory_mb=4000, cpus=2)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="snakemake.logging")
    return caplog


def test_a_sites_own_feature() -> None:
    assert advice(NODES, also=("fast",)).prefer(SMALL, "gpu") == "--prefer='ampere|fast|hopper'"


def test_nothing_extra_where_sinfo_gives_no_answer(said: pytest.LogCaptureFixture) -> None:
    silent = advice(None)
    assert silent.default_partition is None
    assert silent.prefer(SMALL, None) == ""
    assert said.text == ""


def test_a_partition_that_cannot_hold_the_job_is_told_with_those_that_can(said: pytest.LogCaptureFixture) -> None:
    several = advice(NODES + "long|up|hopper|gpu:h100:4|64000|16\n")
    assert several.prefer(SMALL, several.default_partition) == "", "Slurm would refuse"
    assert "no node of partition cpu that can hold a job of 1 GPU, 4000 MB and 2 processors" in said.text
    assert "these have: gpu, long; set one as slurm_partition in the profile" in said.text


def test_a_cluster_that_cannot_hold_the_job_at_all(said: pytest.LogCaptureFixture) -> None:
    assert advice(NODES).prefer(JobSize(gpus=9), "gpu") == ""
    assert "no node of the cluster that can hold a job of 9 GPU" in said.text


def test_where_the_plugin_chooses_the_partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNAKEMAKE_SLURM_PARTITIONS", raising=False)
    (tmp_path / "partitions.yaml").write_text("partitions: {}\n")
    with_file = SimpleNamespace(executor_settings=ExecutorSettings(partition_config=tmp_path / "partitions.yaml"))
    without, in_a_dry_run = (
        SimpleNamespace(executor_settings=ExecutorSettings()),
        SimpleNamespace(executor_settings=None),
    )
    assert plugin_chooses_partitions(with_file)
    assert not plugin_chooses_partitions(without)
    assert not plugin_chooses_partitions(in_a_dry_run)
    monkeypatch.setenv("SNAKEMAKE_SLURM_PARTITIONS", str(tmp_path / "partitions.yaml"))
    assert plugin_chooses_partitions(without)


def test_a_cluster_that_names_nothing(said: pytest.LogCaptureFixture) -> None:
    nameless = advice("gpu*|up|(null)|gpu:a100:4|64000|16\n")
    assert nameless.prefer(SMALL, None) == ""
    assert "no node feature names an Ampere or newer GPU" in said.text
    assert "types: a100" in said.text


def test_a_slurm_without_prefer(said: pytest.LogCaptureFixture) -> None:
    assert advice(NODES, version=(21, 8)).prefer(SMALL, "gpu") == ""
    assert "Slurm 21.08 has no --prefer" in said.text
