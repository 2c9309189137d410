"""What Snakemake would ask Slurm for, read off real dry runs of a small workflow.

``sinfo`` is a stand-in that prints a given cluster; Snakemake and its resources are real.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SNAKEFILE = """
import sys
sys.path.insert(0, "{root}")
from virnucpro.slurm.resources import slurm_resources

rule all:
    input: "one.out", "two.out"

rule embed:
    output: "{{n}}.out"
    threads: 2
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: attempt * (4000 if wildcards.n == "one" else 40000),
        **slurm_resources(workflow, {features}),
    shell: "touch {{output}}"
"""

NODES = """\
cpu*|up|avx512|(null)|16000|4
gpu|up|ampere,fast|gpu:a100:1|16000|16
gpu|up|hopper|gpu:h100:4|64000|16
gpu|up|turing|gpu:rtx2080ti:2|64000|16
"""


class Dry:
    """A folder with the workflow and a stand-in for sinfo."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster(NODES)
        self.snakefile()

    def cluster(self, nodes: str, version: str = "23.02.1") -> None:
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        (programs / "nodes").write_text(nodes)
        (programs / "sinfo").write_text(
            f"#!/bin/sh\necho called >> {self.folder}/calls\n"
            f'[ "$1" = --version ] && echo slurm {version} || cat {programs}/nodes\n'
        )
        (programs / "sinfo").chmod(0o755)

    def snakefile(self, features: str = "[]") -> None:
        (self.folder / "Snakefile").write_text(SNAKEFILE.format(root=ROOT, features=features))

    def run(self, *arguments: str, dry: bool = True, sinfo: bool = True) -> tuple[dict[str, dict[str, str]], str]:
        """Each job's resources by its output, and all of the text."""
        if not sinfo:
            (self.folder / "bin" / "sinfo").write_text("#!/bin/sh\nexit 1\n")
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "4", *(["-n"] if dry else []), *arguments],
            cwd=self.folder,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        text = done.stdout + done.stderr
        assert done.returncode == 0, text
        jobs = {}
        for job in re.findall(r"^(?:local)?rule embed:\n(?:    .*\n)+", text, flags=re.MULTILINE):
            output = re.search(r"output: (\w+)", job)
            resources = re.search(r"resources: (.*)", job)
            assert output
            assert resources
            jobs[output[1]] = dict(part.split("=", 1) for part in resources[1].split(", "))
        return jobs, text


@pytest.fixture
def dry(tmp_path: Path) -> Dry:
    return Dry(tmp_path)


def test_newer_gpus_of_nodes_that_can_hold_each_job(dry: Dry) -> None:
    jobs, text = dry.run()
    assert jobs["one"]["slurm_partition"] == jobs["two"]["slurm_partition"] == "gpu"
    assert jobs["one"]["slurm_extra"] == "--prefer='ampere|hopper'"
    assert jobs["two"]["slurm_extra"] == "--prefer=hopper", "40 GB: no ampere node can hold it"
    assert text.count("GPU jobs go to partition gpu") == 1
    assert text.count("Ampere or newer where available") == 1
    assert (dry.folder / "calls").read_text().count("called") == 2, "one question, and the version"


def test_a_sites_own_feature(dry: Dry) -> None:
    dry.snakefile('["fast"]')
    assert dry.run()[0]["one"]["slurm_extra"] == "--prefer='ampere|fast|hopper'"


def test_nothing_extra_where_sinfo_gives_no_answer(dry: Dry) -> None:
    jobs, text = dry.run(sinfo=False)
    assert not {"slurm_extra", "slurm_partition"} & set(jobs["one"])
    assert "GPU jobs" not in text


def test_nothing_extra_in_a_run_on_this_machine(dry: Dry) -> None:
    jobs, text = dry.run(dry=False)
    assert not {"slurm_extra", "slurm_partition"} & set(jobs["one"])
    assert not (dry.folder / "calls").exists(), "sinfo was not even asked"
    assert "GPU jobs" not in text


@pytest.mark.parametrize(
    ("arguments", "extra", "partition"),
    [
        (["--set-resources", "embed:mem_mb=30000"], "--prefer=hopper", "gpu"),
        (["--set-resources", "embed:gpu=2"], "--prefer=hopper", "gpu"),
        (["--set-resources", "embed:gpu=0", "embed:gres='gpu:a100:1'"], "--prefer=ampere", "gpu"),
        (["--set-resources", "embed:constraint='turing'"], None, "gpu"),
        (["--set-resources", "embed:slurm_partition=cpu"], None, "cpu"),
        (["--set-resources", "embed:slurm_extra='--nice=5'"], "--nice=5", "gpu"),
        (["--default-resources", "slurm_partition=gpu"], "--prefer='ampere|hopper'", "gpu"),
        (["--default-resources", "slurm_extra='--nice=5'"], "--nice=5 --prefer='ampere|hopper'", "gpu"),
    ],
)
def test_what_the_user_sets_wins(dry: Dry, arguments: list[str], extra: str | None, partition: str) -> None:
    resources = dry.run(*arguments)[0]["one"]
    assert resources.get("slurm_extra") == extra
    assert resources.get("slurm_partition") == partition


def test_several_partitions_with_gpus_are_named_and_left_to_the_user(dry: Dry) -> None:
    dry.cluster(NODES + "long|up|hopper|gpu:h100:4|64000|16\n")
    jobs, text = dry.run()
    assert "slurm_partition" not in jobs["one"]
    assert "these have: gpu, long; set one as slurm_partition in the profile" in text
    assert "slurm_extra" not in jobs["one"], "the default partition has no such node, and Slurm would refuse"


def test_a_cluster_that_names_nothing(dry: Dry) -> None:
    dry.cluster("gpu*|up|(null)|gpu:a100:4|64000|16\n")
    jobs, text = dry.run()
    assert not {"slurm_extra", "slurm_partition"} & set(jobs["one"])
    assert "no node feature names an Ampere or newer GPU" in text
    assert "types: a100" in text


def test_a_slurm_without_prefer(dry: Dry) -> None:
    dry.cluster(NODES, version="21.08.8")
    jobs, text = dry.run()
    assert "slurm_extra" not in jobs["one"]
    assert "Slurm 21.08 has no --prefer" in text
