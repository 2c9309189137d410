"""The real workflow on a real Slurm, over mixed nodes, with everything going wrong at once.

One run with the shipped profile. Six of its jobs are held at the very end of their work; meanwhile the others finish,
one of them only at its second attempt, for want of memory. Then a job is cancelled, one runs out of time, one is
preempted, a node goes down under others, and a node is drained under one more. The run must end well by itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.commands import jobs, out_of_service, slurm, submit, wait
from tests.workflow.faults import Run, record, same_table
from tests.workflow.running import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

HELD = (1, 2, 3, 4, 5, 6)
HUNGRY = 8
NEWER = {"ampere1", "ampere2", "hopper1"}

# As a user on a small cluster would: less memory than the cautious default, and no waiting for the first status.
SLURM = (
    *("--profile", "slurm"),
    *("--set-resources", "embed_esm2:mem_mb=attempt * 2000", "embed_esm2:nodes=1", "detect_gpu:nodes=1"),
    *("--slurm-init-seconds-before-status-checks", "3"),
)


@pytest.fixture
def run(tmp_path: Path, undisturbed: Run) -> Iterator[Run]:
    run = Run(tmp_path, undisturbed.config, SLURM)
    yield run
    run.stop_all()


def running(numbers: set[int] | None = None) -> dict[int, dict[str, str]]:
    """The embed jobs that run now, by chunk; each with its id, state and node."""
    found = {}
    for number, job in jobs("running").items():
        name = job["comment"].removeprefix("rule_embed_esm2_wildcards_own_chunk_")
        if name.isdecimal() and (numbers is None or int(name) in numbers):
            found[int(name)] = {**job, "id": number}
    return found


def submissions(text: str) -> list[tuple[int, str]]:
    """Chunk and Slurm's number of every embed job, by Snakemake's output."""
    lines = re.findall(r"SLURM jobid (\d+) \(log: \S*/rule_embed_esm2/own_chunk_(\d+)/", text)
    return [(int(chunk), number) for number, chunk in lines]


def test_a_run_in_which_much_goes_wrong(run: Run, undisturbed: Run) -> None:
    for number in HELD:
        run.order(run.chunk(number), "pause")
    run.order(run.chunk(HUNGRY), "memory 2100")
    process = run.start()
    for number in HELD:
        run.struck(run.chunk(number), 180)
    wait(lambda: run.chunk(HUNGRY).exists() and set(running()) == set(HELD), 240, "the other chunks")
    placed = running()
    assert len(placed) == len(HELD)
    assert {job["node"] for job in placed.values()} >= {"ampere2", "turing1"}

    [preempted] = [number for number, job in placed.items() if job["node"] == "ampere2"]
    down = {number for number, job in placed.items() if job["node"] == "hopper1"}
    drained = next(number for number, job in placed.items() if job["node"] == "turing1")
    cancelled, timed_out = sorted(set(HELD) - {preempted, drained} - down)[:2]

    slurm("scontrol", "update", f"JobId={placed[timed_out]['id']}", "TimeLimit=1")
    slurm("scancel", placed[cancelled]["id"])
    with out_of_service("hopper1", "DOWN"):
        wait(lambda: not down & {n for n, job in running().items() if job["node"] == "hopper1"}, 60, "node down")
    with out_of_service("turing1"):
        slurm("scontrol", "update", "PartitionName=urgent", "State=UP")
        urgent, refused = submit("--partition=urgent", "--nodelist=ampere2", "--gres=gpu:1", script="sleep 2")
        assert urgent, refused
        wait(lambda: jobs()[urgent]["state"] == "COMPLETED", 120, "the job that preempts ours")
        slurm("scontrol", "update", "PartitionName=urgent", "State=INACTIVE")
        assert running({drained})[drained]["node"] == "turing1", "a drained node lets its jobs finish"
        (run.plans / f"{run.chunk(drained).name}.release").touch()
        wait(run.chunk(drained).exists, 60, "the job on the drained node")
    for number in (preempted, *down):  # Slurm would let a requeued job wait for two minutes
        slurm("scontrol", "update", f"JobId={placed[number]['id']}", "StartTime=now")
    result = run.finish(process)
    assert result.code == 0, result.text

    assert same_table(run.table, undisturbed.table)
    submitted = Counter(chunk for chunk, _ in submissions(result.text))
    assert {chunk for chunk, count in submitted.items() if count > 1} == {cancelled, timed_out, HUNGRY}
    assert max(submitted.values()) == 2
    requeued = {
        chunk for chunk, number in submissions(result.text) if "Restarts=1" in slurm("scontrol", "show", "job", number)
    }
    assert requeued == {preempted, *down}
    again = run.call()
    assert again.code == 0
    assert not again.jobs, "nothing is missing"
    one = Counter(embed_esm2=1)
    record("Slurm cancels a job (scancel)", "its chunk", one)
    record("a job runs out of time (the retry has more)", "its chunk", one)
    record("a job runs out of memory (the retry has more)", "its chunk", one)
    record("a job is preempted by Slurm (requeued)", "its chunk", one)
    record("a node goes down (its jobs are requeued)", "the chunks in work on it", one)
    record("a node is drained", "nothing: its jobs finish", Counter())


def test_the_profile_is_found_from_the_root_and_shows_what_it_asks_for(run: Run) -> None:
    result = run.call("--dry-run", "results/gpu.json")
    assert (ROOT / "slurm").is_symlink()
    assert "Using profiles slurm" in result.text
    assert "slurm_extra=--prefer='ampere|hopper|sm80|sm86|sm90', slurm_partition=gpu" in result.text
