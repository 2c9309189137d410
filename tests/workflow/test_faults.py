"""Faults, done for real: each costs what it hit, and the final table is that of an undisturbed run.

Every test starts from a finished run with some chunk files taken away, lets a fault strike while those are made
again, and counts the jobs that the next call runs.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflow.faults import CHUNKS, Run, fill, flip, record, same_table, small_disk, wait_until
from virnucpro.storage.chunk_file import verify_chunk_file
from virnucpro.storage.chunk_writer import write_chunk_file

MERGE = Counter(merge_embeddings=1)
ONE_CHUNK = Counter(embed_esm2=1) + MERGE


@pytest.fixture(scope="module", params=["alone", pytest.param("reuse", marks=pytest.mark.slow)])
def undisturbed(request: pytest.FixtureRequest) -> Run:
    """Every fault also strikes where some of the rows come from earlier results: it costs the same."""
    run: Run = request.getfixturevalue("run_alone" if request.param == "alone" else "run_that_reuses")
    return run


@pytest.fixture
def run(undisturbed: Run, tmp_path: Path) -> Iterator[Run]:
    copy = undisturbed.copy(tmp_path / "run")
    yield copy
    copy.stop_all()


def test_killed_in_the_middle_of_a_chunk(run: Run, undisturbed: Run) -> None:
    run.forget(2, 5, 7)
    run.order(run.chunk(5), "pause")
    first = run.start("--keep-going")
    os.kill(run.struck(run.chunk(5)), signal.SIGKILL)
    result = run.finish(first)
    assert result.code != 0
    assert run.chunk(2).exists()
    assert run.chunk(7).exists()
    assert not run.chunk(5).exists()
    again = run.again()
    assert again.code == 0, again.text
    assert again.jobs == ONE_CHUNK
    assert run.left_over() == [], "what the killed job left is cleared by the next one"
    assert same_table(run.table, undisturbed.table)
    record("an embed job is killed (SIGKILL)", "its chunk", again.jobs)


def test_terminated_with_a_clean_end(run: Run, undisturbed: Run) -> None:
    run.forget(3)
    run.order(run.chunk(3), "pause")
    first = run.start()
    os.kill(run.struck(run.chunk(3)), signal.SIGTERM)
    result = run.finish(first)
    assert result.code != 0
    assert "stopped by SIGTERM" in run.log(3).splitlines()[-1]
    assert "Traceback" not in run.log(3)
    assert run.left_over() == []
    again = run.again()
    assert again.jobs == ONE_CHUNK
    assert same_table(run.table, undisturbed.table)
    record("an embed job is preempted (SIGTERM)", "its chunk", again.jobs)


@pytest.mark.parametrize("step", ["embed", "merge"])
def test_ctrl_c(step: str, run: Run, undisturbed: Run) -> None:
    """The terminal sends it to Snakemake and to its jobs."""
    is_merge = step == "merge"
    output = run.table if is_merge else run.chunk(3)
    log = run.folder / "results" / "logs" / "own" / "merge_embeddings.log" if is_merge else run.log_of(3)
    run.forget(3)
    run.order(output, "pause")
    first = run.start(in_its_own_session=True)
    run.struck(output)
    os.killpg(first.pid, signal.SIGINT)
    result = run.finish(first)
    assert result.code != 0
    assert "Traceback" not in result.text
    assert "stopped by Ctrl-C (SIGINT)" in log.read_text().splitlines()[-1]
    assert run.left_over() == []
    again = run.again()
    assert again.code == 0, again.text
    assert again.jobs == (MERGE if is_merge else ONE_CHUNK)
    assert same_table(run.table, undisturbed.table)
    record(f"Ctrl-C during {'the merge' if is_merge else 'an embedding'}", "the job's work", again.jobs)


def test_snakemake_killed(run: Run, undisturbed: Run) -> None:
    run.forget(1, 4, 6)
    run.order(run.chunk(4), "pause")
    first = run.start("--cores", "1")
    job = run.struck(run.chunk(4))
    made = [number for number in (1, 6) if run.chunk(number).exists()]
    first.kill()
    os.kill(job, signal.SIGKILL)  # as when a machine goes down; alone, it would finish its chunk
    first.communicate()
    locked = run.again()
    assert locked.code != 0
    assert "--unlock" in locked.text
    assert run.again("--unlock").code == 0
    again = run.again()
    assert again.code == 0, again.text
    assert run.chunks_run(again.text) == Counter({1, 4, 6} - set(made))
    assert same_table(run.table, undisturbed.table)
    record(
        "Snakemake and its machine go down (then --unlock)",
        "the chunk in work",
        again.jobs - Counter(embed_esm2=2 - len(made)),
    )


def test_two_runs_started_at_once(run: Run, undisturbed: Run) -> None:
    run.forget(0, 8)
    run.order(run.chunk(8), "hold")
    first = run.start()
    run.struck(run.chunk(8))
    second = run.call()
    assert second.code != 0
    assert "lock" in second.text
    assert not second.jobs
    (run.plans / f"{run.chunk(8).name}.release").touch()
    result = run.finish(first)
    assert result.code == 0, result.text
    assert result.jobs == Counter(embed_esm2=2) + MERGE
    again = run.again()
    assert not again.jobs
    assert same_table(run.table, undisturbed.table)
    record("a second run is started in the same folder", "nothing: it is refused", again.jobs)


def test_merge_killed_half_way(run: Run, undisturbed: Run) -> None:
    run.forget_table()
    run.order(run.table, "pause")
    first = run.start()
    os.kill(run.struck(run.table), signal.SIGKILL)
    assert run.finish(first).code != 0
    assert not run.table.exists()
    again = run.again()
    assert again.code == 0, again.text
    assert again.jobs == MERGE
    assert run.left_over() == []
    assert same_table(run.table, undisturbed.table)
    record("the merge is killed half-way", "the merge", again.jobs)


def test_a_gpu_that_fails_in_one_job_of_many(run: Run, undisturbed: Run) -> None:
    """The process that met the error ends, and the retry is a new one."""
    run.forget(2, 3, 9)
    run.order(run.chunk(3), "fail CUDA error: device-side assert triggered")
    result = run.call("--retries", "1")
    assert result.code == 0, result.text
    assert run.chunks_run(result.text) == Counter({2: 1, 3: 2, 9: 1})
    assert same_table(run.table, undisturbed.table)
    again = Counter(embed_esm2=run.chunks_run(result.text).total() - 3)
    record("a GPU fails in one job of many (with retries)", "its chunk", again)


def test_a_file_that_comes_late(run: Run, undisturbed: Run) -> None:
    run.forget(6)
    run.order(run.chunk(6), "late 3")
    result = run.call("--latency-wait", "30")
    assert result.code == 0, result.text
    assert result.jobs == ONE_CHUNK
    again = run.again()
    assert not again.jobs
    assert same_table(run.table, undisturbed.table)
    record("a finished job's file appears late (latency-wait)", "nothing", again.jobs)


def test_bad_chunk_files_are_found_and_recomputed(run: Run, undisturbed: Run) -> None:
    """Cut short, swapped, of another model: seen when the run is planned. One flipped bit: the merge names that one."""
    cut = run.chunk(0)
    cut.write_bytes(cut.read_bytes()[:-100])
    one, other = run.chunk(2), run.chunk(3)
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    foreign = run.chunk(5)
    file = verify_chunk_file(foreign)
    tensors = {name: file.tensors(name).copy() for name in file.names}
    metadata = {key: value for key, value in file.metadata.items() if key not in ("checksum", "format")}
    write_chunk_file(foreign, tensors, metadata | {"weights_sha256": "0" * 64})
    flipped = run.chunk(7)
    flip(flipped)
    run.forget_table()

    seen = [0, 2, 3, 5]
    first = run.again()
    assert first.code != 0
    assert run.chunks_run(first.text) == Counter(seen)
    assert first.jobs == Counter(embed_esm2=len(seen)) + MERGE
    log = (run.folder / "results/logs/own/merge_embeddings.log").read_text()
    for number in range(CHUNKS):
        assert (run.chunk(number).name in log) == (number == 7), log
        assert run.chunk(number).exists() == (number != 7)
    assert "Traceback" not in first.text
    assert not run.table.exists()

    again = run.again()
    assert again.code == 0, again.text
    assert run.chunks_run(again.text) == Counter([7])
    assert again.jobs == Counter(embed_esm2=1) + MERGE
    assert same_table(run.table, undisturbed.table)
    for fault, count in (
        ("a chunk file is cut short", 1),
        ("two chunk files are swapped", 2),
        ("a chunk file is from another model", 1),
    ):
        lost = "the chunk" if count == 1 else "both chunks"
        record(f"{fault} (its header tells)", lost, Counter(embed_esm2=count) + MERGE)
    record("one bit of a chunk file flips (the merge names it)", "the chunk", Counter(embed_esm2=1) + MERGE)


def test_a_full_disk(run: Run, undisturbed: Run) -> None:
    with small_disk(run.tensors, megabytes=2) as disk:
        run.forget(4)
        filler = disk / "somebody-elses-data"
        fill(filler)
        first = run.again()
        assert first.code != 0
        last = run.log(4).splitlines()[-1]
        assert re.search(
            r"error: writing the embeddings of \d+ proteins takes .* or more in .*/tensors, where 0 bytes is free", last
        )
        assert "Traceback" not in first.text
        assert run.left_over() == []
        filler.unlink()
        again = run.again()
        assert again.code == 0, again.text
        assert again.jobs == ONE_CHUNK
        assert same_table(run.table, undisturbed.table)
    record("the disk is full when a chunk is to be embedded", "the chunk", again.jobs)


def test_a_new_gpu_report_makes_no_chunk_stale(run: Run, undisturbed: Run) -> None:
    """Killed while it is made anew in a finished run; newer than the chunks; killed while a chunk waits for it."""
    report = run.folder / "results" / "gpu.json"
    run.order(report, "pause")
    first = run.start("--forcerun", "detect_gpu")
    os.kill(run.struck(report), signal.SIGKILL)
    assert run.finish(first).jobs == Counter(detect_gpu=1)
    again = run.again()
    assert again.code == 0
    assert not again.jobs
    record("detect_gpu of a finished run is killed", "the report, which nothing needs any more", again.jobs)

    run.forget(4)
    (run.plans / "gpu.json.pid").unlink()
    run.order(report, "pause")
    first = run.start()
    os.kill(run.struck(report), signal.SIGKILL)
    assert run.finish(first).jobs == Counter(detect_gpu=1)
    again = run.again()
    assert again.code == 0, again.text
    assert again.jobs == Counter(detect_gpu=1) + ONE_CHUNK
    assert same_table(run.table, undisturbed.table)
    record("detect_gpu is killed while a chunk waits for it", "the report", again.jobs)
    os.utime(report)
    assert not run.again().jobs


def test_a_lost_table_and_a_run_of_a_part(run: Run, undisturbed: Run) -> None:
    """Snakemake by itself says "Nothing to be done": what is gone is asked for by rules that the run leaves out."""
    run.forget_table()
    again = run.again("--until", "merge_embeddings", target="")
    assert again.code == 0, again.text
    assert again.jobs == MERGE
    assert same_table(run.table, undisturbed.table)
    record("a table is lost (--until merge_embeddings)", "the table", again.jobs)


def test_the_faults_strike_where_they_should(run: Run) -> None:
    """A fault that is ordered for an output that nobody makes does nothing, and none is ordered by default."""
    run.order(run.chunk(99), "fail never")
    assert not run.call().jobs
    wait_until(lambda: (run.plans / run.chunk(99).name).exists(), 1)
