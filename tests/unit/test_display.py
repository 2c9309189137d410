"""What a run shows: of Snakemake's records a plan, a moving line, warnings, and the reason of a failure at the end."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from virnucpro.base.records import write_record
from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.display import RunDisplay, RunningJob, RunProgress
from virnucpro.jobs import DISPLAY, job, read_job_log
from virnucpro.plan import Planned


class Event(Enum):
    """Snakemake's words for its records."""

    JOB_INFO = "job_info"
    JOB_ERROR = "job_error"
    JOB_FINISHED = "job_finished"
    PROGRESS = "progress"
    ERROR = "error"
    WORKFLOW_STARTED = "workflow_started"
    RUN_INFO = "run_info"


class Screen(io.StringIO):
    """A terminal, or a file."""

    def __init__(self, tty: bool) -> None:
        super().__init__()
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


@pytest.fixture
def screen() -> Screen:
    return Screen(False)


@pytest.fixture
def display(screen: Screen) -> RunDisplay:
    return RunDisplay(logging.StreamHandler(screen))


def tell(display: RunDisplay, text: str, event: Event | None = None, level: int = logging.INFO, **extra: Any) -> None:
    record = logging.LogRecord("snakemake.logging", level, "", 0, text, None, None)
    record.__dict__.update(extra, **({"event": event} if event else {}))
    display.handle(record)


def start(display: RunDisplay, number: int, log: Path, inputs: Sequence[str] = (), rule: str = "embed_esm2") -> None:
    tell(
        display,
        "a block",
        Event.JOB_INFO,
        jobid=number,
        rule_name=rule,
        wildcards={"sample": "my", "chunk": f"chunk_0000{number}"},
        log=[str(log)],
        input=list(inputs),
    )


def chunk(folder: Path, number: int, residues: int = 980) -> str:
    path = folder / f"chunk_0000{number}.json"
    write_record(path, ChunkManifest(path.stem, 10, residues, residues, "0" * 32))
    return str(path)


def begin(display: RunDisplay, chunks: int = 2) -> None:
    tell(display, "Workflow has started!", Event.WORKFLOW_STARTED)
    part = Planned("", 1000 * chunks, chunks, True)
    display.begin("my: 20 proteins", [part], lambda: [part])


def test_blocks_and_statistics_are_left_to_the_log_file(display: RunDisplay, screen: Screen, tmp_path: Path) -> None:
    tell(display, "Settings: config.yaml")
    tell(display, "Assuming unrestricted shared filesystem usage.")
    begin(display)
    for text in ("Building DAG of jobs...", "Using shell: bash", "Select jobs to execute...", "Finished jobid: 3"):
        tell(display, text)
    tell(display, "job count", Event.RUN_INFO)
    start(display, 1, tmp_path / "log", [chunk(tmp_path, 1)])
    tell(display, "Elapsed time")
    display.end("  NOTE       all is random, and so\n             it is\n  table      here\n")
    assert screen.getvalue() == "Settings: config.yaml\nmy: 20 proteins\n"


def test_a_note_that_was_said_as_a_warning_is_not_said_again(
    display: RunDisplay, screen: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text("10:00:00 WARNING: all is random, and so it is\n10:00:01 done\n")
    begin(display)
    for number in (1, 2):
        start(display, number, tmp_path / "log")
        tell(display, "", Event.JOB_FINISHED, job_id=number)
    display.end(
        "Embedded.\n  NOTE       all is random, and so\n             it is\n  NOTE       new\n  table      here\n"
    )
    assert screen.getvalue().count("WARNING: all is random, and so it is\n") == 1
    assert capsys.readouterr().out == "Embedded.\n  NOTE       new\n  table      here\n"


def test_the_reason_of_a_failure_is_the_last_line(display: RunDisplay, screen: Screen, tmp_path: Path) -> None:
    log = tmp_path / "split.log"
    sentence = "my.faa, line 4: '1' in record 'b' is no residue; " + "fix it, " * 20 + "please"
    log.write_text(f"10:00:00 reading\n10:00:01 error: {sentence}\n")
    begin(display)
    start(display, 1, log, rule="split_proteins")
    text = "CalledProcessError in file split.smk: returned non-zero exit status 1."
    tell(display, text, Event.ERROR, logging.ERROR, exception="RuleException")
    tell(
        display, "", Event.JOB_ERROR, logging.ERROR, jobid=1, rule_name="split_proteins", log=[str(log)], rule_msg=None
    )
    tell(display, "Exiting because a job execution failed. Look above for error messages", level=logging.ERROR)
    display.end(None)
    tell(display, "WorkflowError:\nAt least one job did not complete successfully.", Event.ERROR, logging.ERROR)
    text = " ".join(screen.getvalue().split())
    assert f"failed: split_proteins my chunk_00001; its log: {log} Not all is done. Kept: 0 of 2 chunks." in text
    assert screen.getvalue().splitlines()[-1] == f"error: {sentence}"


def test_a_job_that_was_killed_has_a_reason_too(display: RunDisplay, screen: Screen, tmp_path: Path) -> None:
    log = tmp_path / "embed.log"
    log.write_text("10:00:00 chunk_00001: 10 proteins\n")
    begin(display)
    start(display, 1, log)
    text = "CalledProcessError: Command 'python' died with <Signals.SIGKILL: 9>."
    tell(display, text, Event.ERROR, logging.ERROR, exception="RuleException")
    tell(display, "", Event.JOB_ERROR, logging.ERROR, jobid=1, rule_name="embed_esm2", log=[str(log)], rule_msg=None)
    display.end(None)
    last = screen.getvalue().splitlines()[-1]
    assert last.startswith("error: embed_esm2 my chunk_00001: killed (SIGKILL), as the system does")
    assert last.endswith(f"see {log}")


def test_a_job_that_is_tried_again_is_no_failure_of_the_run(
    display: RunDisplay, screen: Screen, tmp_path: Path
) -> None:
    begin(display)
    start(display, 1, tmp_path / "none.log")
    why = "SLURM-job '7' failed, SLURM status is: 'TIMEOUT'\n    sbatch call:\n        sbatch --parsable"
    tell(display, "", Event.JOB_ERROR, logging.ERROR, jobid=1, rule_name="embed_esm2", log=[], rule_msg=why)
    tell(display, "Trying to restart job 1.")
    display.end(None)
    assert (
        f"trying again: embed_esm2 my chunk_00001 (embed_esm2 my chunk_00001: {why.splitlines()[0]}; see"
        in " ".join(screen.getvalue().split())
    )
    assert "error:" not in screen.getvalue()


def test_ctrl_c_is_one_line(display: RunDisplay, screen: Screen, tmp_path: Path) -> None:
    begin(display, chunks=4)
    for number in (1, 2):
        start(display, number, tmp_path / "log", [chunk(tmp_path, number)])
    tell(display, "", Event.JOB_FINISHED, job_id=1)
    tell(display, "Terminating processes on user request, this might take some time.")
    tell(display, "CalledProcessError", Event.ERROR, logging.ERROR, exception="RuleException")
    tell(display, "", Event.JOB_ERROR, logging.ERROR, jobid=2, rule_name="embed_esm2", log=[], rule_msg=None)
    display.end(None)
    said = "Stopped by Ctrl-C. Kept: 1 of 4 chunks. The same command goes on."
    assert screen.getvalue().splitlines()[1:] == [said]


def test_ctrl_c_where_snakemake_does_not_take_it(display: RunDisplay, screen: Screen) -> None:
    begin(display, chunks=4)
    display.interrupted(KeyboardInterrupt, KeyboardInterrupt(), None)
    said = "Stopped by Ctrl-C. Kept: 0 of 4 chunks. The same command goes on."
    assert screen.getvalue().splitlines()[1:] == [said]


def test_other_errors_and_warnings_of_snakemake_are_shown(display: RunDisplay, screen: Screen) -> None:
    begin(display)
    for _ in range(2):
        tell(display, "No SLURM account given", level=logging.WARNING)
    tell(display, "LockException:\nanother process", Event.ERROR, logging.ERROR, exception="LockException")
    tell(display, "Nothing to be done (all requested files are present and up to date).")
    assert screen.getvalue().count("No SLURM account given") == 1
    assert "LockException:\nanother process\nNothing to be done" in screen.getvalue()


def test_a_terminal_has_one_line_that_moves_and_is_gone_at_the_end(tmp_path: Path) -> None:
    screen = Screen(True)
    display = RunDisplay(logging.StreamHandler(screen))
    begin(display)
    start(display, 1, tmp_path / "log", [chunk(tmp_path, 1)])
    tell(display, "", Event.JOB_FINISHED, job_id=1)
    tell(display, "", Event.PROGRESS, done=3, total=7)
    assert display._line.moves
    display._line._bar.refresh()
    assert " 50 % |" in screen.getvalue()
    assert "1 of 2 chunks" in screen.getvalue()
    display.end(None)
    assert screen.getvalue().endswith("The same command goes on.\n")


def test_several_jobs_at_once_add_up(tmp_path: Path) -> None:
    now = [0.0]
    left = [Planned("", 4000, 4, True)]
    progress = RunProgress(lambda: left, clock=lambda: now[0])
    progress.take(left)
    assert progress.words() == "waiting"
    for number in (1, 2):
        log = tmp_path / f"{number}.log"
        log.write_text("10:00:00 starting\n")
        job_ = RunningJob.of("embed_esm2", {"sample": "my"}, [f"{log} (check log)"], [chunk(tmp_path, number)])
        progress.started(number, job_)
    assert progress.words() == "0 of 4 chunks, 2 jobs"
    now[0] = 10.0
    (tmp_path / "2.log").write_text("10:00:09  50 %  5 of 10 proteins, 490 residues, 100 tokens/s, 0:05 left, cpu\n")
    progress.look()
    progress.finished(1)
    assert progress.share == pytest.approx(1500 / 4000)
    assert progress.words() == "1 of 4 chunks, 150 tokens/s, 0:17 left"


def test_a_split_tells_how_many_chunks_there_are() -> None:
    left = [Planned("", 900, 1, False)]
    progress = RunProgress(lambda: left)
    progress.take(left)
    progress.started(1, RunningJob("split_proteins", {}, None))
    left = [Planned("", 5000, 3, True), Planned("", 400, 1, True, of_bases=True)]
    progress.finished(1)
    assert progress.chunks == (0, 4)


def test_jobs_write_to_the_log_alone_where_the_display_shows(tmp_path: Path) -> None:
    """What libraries print goes there too, and a log that can't be written leaves the sentence on standard error."""
    code = """
import os, sys
from virnucpro.base.errors import UserError
from virnucpro.jobs import DISPLAY, job, standard_error
if sys.argv[2] == "shown":
    os.environ[DISPLAY] = standard_error()
with job("step", sys.argv[1]) as log:
    os.write(2, b"a library speaks\\n")
    log.warning("odd")
    raise UserError("no such thing")
"""

    def said(log: str, how: str) -> str:
        command = [sys.executable, "-c", code, log, how]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    log = tmp_path / "step.log"
    assert said(str(log), "shown") == ""
    found = read_job_log(log)
    assert (found.warnings, found.reason) == (("odd",), "no such thing")
    assert "a library speaks\n" in log.read_text()
    assert "[step] error: no such thing" in said(str(log), "else")
    if Path("/dev/full").exists():
        assert "[step] error: No space left on device" in said("/dev/full", "shown")


def test_the_display_is_not_asked_for_by_other_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert os.environ[DISPLAY] == "snakemake", "as tests have it"
    with job("step", tmp_path / "log") as log:
        log.info(json.dumps({}))
    assert read_job_log(tmp_path / "log").reason is None
    assert read_job_log(tmp_path / "none") == read_job_log(tmp_path)
