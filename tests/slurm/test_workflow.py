"""The real workflow on a real Slurm, over mixed nodes, with everything going wrong at once.

One run with the shipped profile. Seven of its jobs are held at the very end of their work, one on each GPU. Then the
node under two of them goes down, two more finish on a node that is being drained, one is preempted, one is cancelled
and one runs out of time; and of the other chunks, one runs out of memory at its first attempt. The run must end well
by itself, and have lost what it had to lose.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.commands import SLURM, jobs, out_of_service, slurm, submit, wait
from tests.unit.calling_cases import table
from tests.workflow.faults import Run, record, same_table
from tests.workflow.running import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

HELD = (1, 2, 3, 4, 5, 6, 7)
HUNGRY = 9
GPUS = {"ampere1": 2, "ampere2": 1, "hopper1": 2, "turing1": 2}

CLASSIFY_JOBS = (
    *("--set-resources", "detect_gpu:nodes=1", "detect_gpu:slurm_partition=gpu"),
    *(f"{rule}:{what}" for rule in ("embed_esm2", "embed_dnabert_s") for what in ("nodes=1", "slurm_partition=gpu")),
    *(f"{rule}:mem_mb=2000" for rule in ("embed_esm2", "embed_dnabert_s")),
)


@pytest.fixture(params=["alone", pytest.param("reuse", marks=pytest.mark.slow)])
def undisturbed(request: pytest.FixtureRequest) -> Run:
    run: Run = request.getfixturevalue("run_alone" if request.param == "alone" else "run_that_reuses")
    return run


@pytest.fixture
def run(tmp_path: Path, undisturbed: Run) -> Iterator[Run]:
    run = Run(tmp_path, undisturbed.config, SLURM)
    yield run
    run.stop_all()


def running(run: Run, numbers: set[int] | None = None) -> dict[int, dict[str, str]]:
    """The embed jobs that run now, by chunk; each with its id, state and node."""
    found = {}
    for job_id, job in jobs("running").items():
        name = job["comment"].removeprefix("rule_embed_esm2_wildcards_chunk_")
        number = int(name) - run.first if name.isdecimal() else None
        if number is not None and (numbers is None or number in numbers):
            found[number] = {**job, "id": job_id}
    return found


def submissions(run: Run, text: str) -> list[tuple[int, str]]:
    """Chunk and Slurm's number of every embed job, by Snakemake's output."""
    lines = re.findall(r"SLURM jobid (\d+) \(log: \S*/rule_embed_esm2/chunk_(\d+)/", text)
    return [(int(chunk) - run.first, number) for number, chunk in lines]


def test_a_run_in_which_much_goes_wrong(run: Run, undisturbed: Run) -> None:
    for number in HELD:
        run.order(run.chunk(number), "pause")
    run.order(run.chunk(HUNGRY), "memory 2100")
    process = run.start()
    for number in HELD:
        run.struck(run.chunk(number), 180)
    placed = running(run, set(HELD))
    on = {node: sorted(number for number, job in placed.items() if job["node"] == node) for node in GPUS}
    assert {node: len(numbers) for node, numbers in on.items()} == GPUS, "newer and older GPUs are all in use"
    down, drained, [preempted], [cancelled, timed_out] = on["hopper1"], on["turing1"], on["ampere2"], on["ampere1"]

    slurm("scontrol", "update", f"JobId={placed[timed_out]['id']}", "TimeLimit=1")
    with out_of_service("turing1"), out_of_service("hopper1", "DOWN"):
        for number in drained:  # a drained node lets its jobs finish
            assert placed[number]["id"] == running(run)[number]["id"]
            (run.plans / f"{run.chunk(number).name}.release").touch()
        wait(lambda: all(run.chunk(number).exists() for number in drained), "the jobs on the drained node")
        wait(lambda: not any(job["node"] == "hopper1" for job in running(run).values()), "the node to go down")
        slurm("scontrol", "update", "PartitionName=urgent", "State=UP")
        urgent, refused = submit("--partition=urgent", "--nodelist=ampere2", "--gres=gpu:1", script="sleep 2")
        assert urgent, refused
        wait(lambda: jobs()[urgent]["state"] == "COMPLETED", "the job that preempts ours")
        slurm("scontrol", "update", "PartitionName=urgent", "State=INACTIVE")
    slurm("scancel", placed[cancelled]["id"])
    for number in (preempted, *down):  # Slurm would let a requeued job wait for two minutes
        slurm("scontrol", "update", f"JobId={placed[number]['id']}", "StartTime=now")
    result = run.finish(process)
    assert result.code == 0, result.text

    assert same_table(run.table, undisturbed.table)
    submitted = Counter(chunk for chunk, _ in submissions(run, result.text))
    assert {chunk for chunk, count in submitted.items() if count > 1} == {cancelled, timed_out, HUNGRY}
    assert max(submitted.values()) == 2
    requeued = {
        chunk
        for chunk, number in submissions(run, result.text)
        if "Restarts=1" in slurm("scontrol", "show", "job", number)
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
    record("a node goes down (its two jobs are requeued)", "their chunks", Counter(embed_esm2=len(down)))
    record("a node is drained", "nothing: its jobs finish", Counter())


@pytest.mark.slow  # two minutes, nearly all of it waiting
def test_from_contigs_to_calls_with_the_profile_that_is_found_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "own.fna").write_text(">a\n" + "GCCACG" * 40 + "\n>silent\n" + "TAACTAGTTAGCTAACTTAACTAA" * 5 + "\n")
    models = {"classifier": "classifier_demo", "nucleotide_model": "dnabert_s_demo"}
    classify = "{" + ", ".join(f"{name}: {value}" for name, value in models.items()) + "}"
    config: dict[str, object] = {
        "samples": tmp_path / "own.fna",
        "input": "nucleotide",
        "model": "esm2_demo",
        "classify": classify,
    }
    run = Run(tmp_path, config, (*SLURM[:2], *CLASSIFY_JOBS, *SLURM[-2:]))
    # What needs no cluster comes first, on this machine: a step on Slurm is seen to be done after a poll or two.
    local = Run(tmp_path, config).call("--until", "split_proteins", "split_nucleotides", "detect_gpu", target="")
    assert local.code == 0, local.text
    try:
        result = run.call(target="results/own/calls/calls.json")
    finally:
        run.stop_all()
    assert result.code == 0, result.text
    assert (ROOT / "slurm").is_symlink()
    assert "Using profiles slurm" in result.text
    assert result.jobs["split_proteins"] == result.jobs["split_nucleotides"] == 0
    block = re.search(r"^rule embed_dnabert_s:\n(?:    .*\n)+", result.text, flags=re.MULTILINE)
    assert block is not None
    assert "slurm_extra=--prefer='ampere|hopper|sm80|sm86|sm90'" in block[0]
    assert "slurm_partition=gpu" in block[0]
    submitted = set(re.findall(r"SLURM jobid \d+ \(log: \S*/rule_(\w+)/", result.text))
    assert {"embed_esm2", "embed_dnabert_s", "classify_frames", "call_contigs"} <= submitted
    calls = table(tmp_path / "results/own/calls/contigs.tsv")
    assert [(row["contig"], row["call"] == "unscored") for row in calls] == [("a", False), ("silent", True)]
