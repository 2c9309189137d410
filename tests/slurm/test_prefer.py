"""Ampere or newer where available, on a real Slurm: what is asked for is never refused, and older GPUs serve."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.commands import jobs, out_of_service, set_features, submit, wait
from tests.slurm.testbed import NODES
from virnucpro.slurm.cluster import JobSize, ask_cluster, prefer_option

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

NEWER = {"ampere1", "ampere2", "hopper1"}


def options(size: JobSize | None = None) -> list[str]:
    """What a GPU job is submitted with."""
    size = size or JobSize(memory_mb=1000)
    prefer = prefer_option(ask_cluster(), size, partition="gpu")
    return [f"--gpus={size.gpus}", "--nodes=1", *shlex.split(prefer), "--partition=gpu"]


def run_on(count: int, *extra: str, size: JobSize | None = None, script: str = "true") -> list[str]:
    """Submit so many jobs, wait for all, and give the nodes that they ran on."""
    asked = options(size)
    numbers = []
    for _ in range(count):
        number, refused = submit(*asked, *extra, script=script)
        assert number, refused
        numbers.append(number)
    wait(lambda: all(jobs()[number]["state"] == "COMPLETED" for number in numbers), f"jobs {numbers}")
    return [jobs()[number]["node"] for number in numbers]


def run_together(count: int, folder: Path) -> list[str]:
    """As :func:`run_on`, with jobs of which none ends before all have begun."""
    begun = folder / "begun"
    begun.mkdir()
    return run_on(
        count, script=f"touch {begun}/$SLURM_JOB_ID; until [ $(ls {begun} | wc -l) = {count} ]; do sleep 0.2; done"
    )


def test_the_option_is_made_of_the_clusters_own_features(slurm: Path) -> None:
    assert options() == ["--gpus=1", "--nodes=1", "--prefer=ampere|hopper|sm80|sm86|sm90", "--partition=gpu"]


def test_jobs_go_to_newer_gpus_while_those_are_free_and_then_to_older_ones(tmp_path: Path) -> None:
    nodes = run_together(7, tmp_path)
    assert sorted(nodes[:5]) == ["ampere1", "ampere1", "ampere2", "hopper1", "hopper1"]
    assert nodes[5:] == ["turing1", "turing1"], "no waiting for a newer one"


def test_older_gpus_serve_when_the_newer_ones_are_drained() -> None:
    with out_of_service("ampere1,ampere2,hopper1"):
        assert run_on(2) == ["turing1", "turing1"]


def test_older_gpus_serve_when_the_newer_ones_are_down() -> None:
    with out_of_service("ampere1,ampere2,hopper1", "DOWN"):
        assert run_on(1) == ["turing1"]


def test_a_job_that_no_newer_node_can_hold_is_accepted() -> None:
    """Slurm refuses to prefer nodes that could never hold the job; so they are not asked for then."""
    number, refused = submit("--partition=gpu", "--gpus=2", "--nodes=1", "--prefer=sm86")
    assert number is None, "if this has changed, features need no longer be matched with the job's size"
    assert "not available" in refused
    set_features("turing1", "turing,sm75,rtx3090")  # a lie, for once
    try:
        two = JobSize(gpus=2, memory_mb=1000)
        assert "sm86" not in " ".join(options(two))
        assert set(run_on(1, size=two)) <= {*NEWER, "turing1"}
    finally:
        set_features("turing1", "turing,sm75")


@pytest.fixture
def nameless() -> Iterator[None]:
    """A cluster whose nodes have no features at all."""
    for node in NODES:
        set_features(node.name, "")
    yield
    for node in NODES:
        set_features(node.name, node.features)


@pytest.mark.usefixtures("nameless")
def test_a_cluster_without_any_of_the_names_accepts_every_job() -> None:
    assert options() == ["--gpus=1", "--nodes=1", "--partition=gpu"]
    assert len(run_on(2)) == 2
    number, _ = submit("--partition=gpu", "--gpus=1", "--prefer=ampere")
    assert number is None, "asking for a feature that is not there is refused"
