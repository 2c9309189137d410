"""What a run of the workflow shows: its plan, one line that moves, warnings, and at the end a summary or what failed.

It takes the place of Snakemake's own lines, which stay in Snakemake's log file. In a file or a pipe the line that moves
becomes a few plain ones.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record
from virnucpro.base.text import clock_time, number
from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.chunking.size import BASES, SPECIAL_TOKENS
from virnucpro.jobs import DISPLAY, ERROR, OWN_LINES, PLAN_ALONE, read_job_log, standard_error
from virnucpro.moving_line import MovingLine
from virnucpro.plan import Planned
from virnucpro.report.summary import NOTE

EMBEDS = ("embed_esm2", "embed_dnabert_s")
SPLITS = ("split_proteins", "split_nucleotides")
"""Rules by name."""


@dataclass
class RunningJob:
    """A job that has been started; ``tokens`` are those of its chunk, 0 where it embeds none."""

    rule: str
    wildcards: Mapping[str, str]
    log: Path | None
    tokens: int = 0

    @classmethod
    def of(cls, rule: str, wildcards: Mapping[str, str], logs: Sequence[str], inputs: Sequence[str]) -> RunningJob:
        """From what Snakemake says of a job, whose paths may end in a remark in brackets."""
        paths = [each.partition(" (")[0] for each in inputs]
        manifests = [Path(path) for path in paths if path.endswith(".json")]
        tokens = _chunk_tokens(manifests[0], rule) if rule in EMBEDS and manifests else 0
        return cls(rule, wildcards, Path(logs[0].partition(" (")[0]) if logs else None, tokens)

    def __str__(self) -> str:
        return " ".join([self.rule, *self.wildcards.values()])


def _chunk_tokens(manifest: Path, rule: str) -> int:
    try:
        chunk = read_record(manifest, ChunkManifest)
    except (UserError, OSError):
        return 0
    if rule == EMBEDS[1]:
        return chunk.residues // BASES.a_token
    return chunk.residues + SPECIAL_TOKENS * chunk.proteins


@dataclass
class RunProgress:
    """What is done and what is left.

    Attributes:
        left_of: gives what is left; asked again once the samples are split.
        steps: how many of Snakemake's jobs are done, and how many there are.
        _done, _wanted: chunks and tokens.
    """

    left_of: Callable[[], Sequence[Planned]]
    clock: Callable[[], float] = time.monotonic
    steps: tuple[int, int] = (0, 0)
    running: dict[int, RunningJob] = field(default_factory=dict)
    _done: tuple[int, int] = (0, 0)
    _wanted: tuple[int, int] = (0, 0)
    _embedding_since: float | None = None
    _partial: float = 0.0

    def take(self, planned: Sequence[Planned]) -> None:
        """Take what the plan has counted: that is left, besides what was done before the count."""
        tokens = sum(part.tokens // BASES.a_token if part.of_bases else part.tokens for part in planned)
        self._wanted = (self._done[0] + sum(part.chunks for part in planned), self._done[1] + tokens)

    def started(self, number: int, job: RunningJob) -> None:
        self.running[number] = job
        if job.rule in EMBEDS and self._embedding_since is None:
            self._embedding_since = self.clock()

    def ended(self, number: int) -> RunningJob | None:
        """Forget a job that has failed, or been done."""
        return self.running.pop(number, None)

    def finished(self, number: int) -> RunningJob | None:
        """Count a job that is done."""
        job = self.ended(number)
        if job is not None and job.rule in EMBEDS:
            self._done = (self._done[0] + 1, self._done[1] + job.tokens)
        elif job is not None and job.rule in SPLITS:
            self.take(self.left_of())
        return job

    def look(self) -> None:
        """Read in their logs how far running jobs are."""
        jobs = [job for job in self.running.values() if job.tokens and job.log is not None]
        self._partial = sum(job.tokens * read_job_log(job.log).share for job in jobs if job.log)

    @property
    def chunks(self) -> tuple[int, int]:
        """How many are done, and how many this run has to do."""
        return self._done[0], max(self._done[0], self._wanted[0])

    @property
    def share(self) -> float:
        """The share of the tokens that is done, 0 to 1; of the steps where nothing is to be embedded."""
        done, wanted = self._tokens()
        if wanted:
            return min(1.0, done / wanted)
        return self.steps[0] / self.steps[1] if self.steps[1] else 0.0

    def _tokens(self) -> tuple[float, int]:
        done, wanted = self._done[1], max(self._done[1], self._wanted[1])
        return min(done + self._partial, wanted), wanted

    def words(self) -> str:
        """What is done and left, rate and time left."""
        done, wanted = self.chunks
        tokens, tokens_wanted = self._tokens()
        if wanted == 0 or done == wanted or self._embedding_since is None:
            names = dict.fromkeys(job.rule for job in self.running.values())
            step = f"step {self.steps[0]} of {self.steps[1]}: " if self.steps[1] else ""
            embedded = "all embedded, " if wanted and done == wanted else ""
            return embedded + step + (", ".join(names) or "waiting")
        parts = [f"{done:,} of {number(wanted, 'chunk')}"]
        jobs = sum(job.rule in EMBEDS for job in self.running.values())
        if jobs > 1:
            parts.append(number(jobs, "job"))
        if tokens > 0:
            rate = tokens / max(self.clock() - self._embedding_since, 1e-9)
            parts += [f"{rate:,.0f} tokens/s", f"{clock_time((tokens_wanted - tokens) / rate)} left"]
        return ", ".join(parts)


_SILENT = (
    "Assuming unrestricted shared filesystem",
    "Exiting because a job execution failed",
    "Shutting down, this might take some time",
    "WorkflowError:\nAt least one job did not complete successfully",
)
"""Messages of Snakemake that the display says in other words."""

_STOPPING = "Terminating processes on user request"


def take_over(workflow: Any) -> RunDisplay | None:
    """Put the display in the place of Snakemake's lines; None where they are what the user wants.

    Args:
        workflow: the Snakefile's ``workflow`` object, of the process that runs the workflow.
    """
    wanted, how = workflow.output_settings, os.environ.get(DISPLAY)
    asks_for_more = wanted.verbose or wanted.debug_dag or wanted.printshellcmds or wanted.quiet
    if asks_for_more or not workflow.modifier.is_main_snakefile() or how == OWN_LINES:
        return None
    if (
        wanted.dryrun and how != PLAN_ALONE
    ) or "--no-hooks" in sys.argv:  # by which the display learns of begin and end
        return None
    logger = logging.getLogger("snakemake.logging")
    before = next((each for each in logger.handlers if each.name == "DefaultStreamHandler"), None)
    if not isinstance(before, logging.StreamHandler):
        return None  # a logger plugin's, which the user asked for
    logger.removeHandler(before)
    display = RunDisplay(before)
    logger.addHandler(display)
    os.environ[DISPLAY] = standard_error()
    sys.excepthook = display.interrupted
    return display


class RunDisplay(logging.Handler):
    """Shows what Snakemake's records say; those before the run begins go to Snakemake's handler."""

    def __init__(self, before: logging.StreamHandler[TextIO]) -> None:
        super().__init__()
        self._before = before
        self._line = MovingLine(before.stream)
        self._runs = False
        self._stopped = False
        self._said: set[str] = set()
        self._failed: dict[int, RunningJob] = {}
        self._reasons: dict[int, str] = {}
        self._words = ""
        self._over = threading.Event()
        self.progress: RunProgress | None = None

    # What the Snakefile says.

    def begin(self, text: str, planned: Sequence[Planned], left_of: Callable[[], Sequence[Planned]]) -> None:
        """Say the plan, and watch the run from now on.

        Args:
            text: the plan in words (see :func:`virnucpro.plan.plan_text`).
            planned: what it counts.
            left_of: gives the same again, once more is known.
        """
        self._line.write(text)
        self.progress = RunProgress(left_of)
        self.progress.take(planned)
        self._line.begin()
        threading.Thread(target=self._watch, daemon=True).start()

    def end(self, summary: str | None) -> None:
        """Take the moving line away, and print the summary; of a run that is not done (None) the reason, last."""
        self._over.set()
        with self.lock or threading.Lock():
            self._line.close()
        if summary is not None:
            print("\n".join(self._new(summary.splitlines())), flush=True)
            return
        done, wanted = self.progress.chunks if self.progress else (0, 0)
        kept = f"{done:,} of {number(wanted, 'chunk')}" if wanted else "what is finished"
        stopped = "Stopped by Ctrl-C" if self._stopped else "Not all is done"
        self._line.write(f"{stopped}. Kept: {kept}. The same command goes on.")
        for reason in dict.fromkeys(self._reasons.values()):
            self._line.write(f"{ERROR}{reason}", is_folded=False)

    def interrupted(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """What an exception that nobody takes prints: of Ctrl-C, which Snakemake takes while it schedules, the line."""
        if issubclass(kind, KeyboardInterrupt):
            self._stopped = True
            self.end(None)
        else:
            sys.__excepthook__(kind, error, trace)

    def _new(self, lines: Sequence[str]) -> list[str]:
        """The lines of a summary without notes that were said as warnings."""
        text = "\n".join(lines)
        for note in re.findall(rf"^  {NOTE} .*(?:\n {{8,}}.*)*", text, re.MULTILINE):
            if " ".join(note.split()).removeprefix(f"{NOTE} ") in self._said:
                text = text.replace(note + "\n", "", 1)
        return text.splitlines()

    # What Snakemake says.

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(getattr(record, "event", None), "value", None)
        self._runs = self._runs or event == "workflow_started"
        try:
            if event is not None and self._runs:
                self._take(event, record)
            elif not str(record.msg).startswith(_SILENT):
                self._pass_on(record)
        except Exception:
            self.handleError(record)

    def _pass_on(self, record: logging.LogRecord) -> None:
        text = str(record.msg)
        if text.startswith(_STOPPING):
            self._stopped = True
        elif again := re.match(r"Trying to restart job (\d+)", text):
            if job := self._failed.pop(int(again[1]), None):
                self._line.write(f"trying again: {job} ({self._reasons.pop(int(again[1]))})")
        elif not self._runs or text.startswith("Nothing to be done"):
            self._before.handle(record)
        elif record.levelno >= logging.WARNING:
            self._warn(text, record)

    def _warn(self, text: str, record: logging.LogRecord) -> None:
        if text not in self._said and not (self._stopped and record.levelno == logging.ERROR):
            self._said.add(text)
            with self._line.away():
                self._before.handle(record)

    def _take(self, event: str, record: logging.LogRecord) -> None:
        of: Mapping[str, Any] = record.__dict__
        progress = self.progress
        if event == "error":
            self._take_error(record)
        elif event == "job_error":
            self._fail(of)
        elif progress is None:
            return
        elif event == "job_info":
            progress.started(
                of["jobid"], RunningJob.of(of["rule_name"], of["wildcards"] or {}, of["log"] or (), of["input"] or ())
            )
        elif event == "job_finished":
            job = progress.finished(of["job_id"])
            if job is not None and job.log is not None:
                self._warnings(job)
            self._show()
        elif event == "progress":
            progress.steps = (of["done"], of["total"])
            self._show()

    def _take_error(self, record: logging.LogRecord) -> None:
        """An exception: that of a job whose log says more is left out."""
        text = str(record.msg)
        kind = getattr(record, "exception", "")
        if kind == "RuleException" and "CalledProcessError" in text:
            found = text.partition("died with <Signals.")[2].partition(":")[0]
            self._words = f"killed ({found})" if found else ""
        elif not text.startswith(_SILENT):
            self._warn(text, record)

    def _fail(self, of: Mapping[str, Any]) -> None:
        job = self.progress.ended(of["jobid"]) if self.progress else None
        job = job or RunningJob.of(of["rule_name"], {}, of["log"] or (), ())
        if self._stopped:
            return
        log = read_job_log(job.log) if job.log else None
        if log is not None and log.reason:
            reason = log.reason
        else:
            said = str(of.get("rule_msg") or "").strip().splitlines()[:1]  # then Slurm's plugin gives its whole command
            why = "".join(said) or self._words or "it ended without a reason in its log"
            if self._words.endswith("(SIGKILL)"):
                why += ", as the system does with a job when memory runs out"
            reason = f"{job}: {why}" + (f"; see {job.log}" if job.log else "")
        self._words = ""
        self._failed[of["jobid"]], self._reasons[of["jobid"]] = job, reason
        self._line.write(f"failed: {job}" + (f"; its log: {job.log}" if job.log else ""))
        if log is not None and not log.reason:
            self._line.write(*log.end, indent="  ")

    def _warnings(self, job: RunningJob) -> None:
        assert job.log is not None
        for text in read_job_log(job.log).warnings:
            if text not in self._said:
                self._said.add(text)
                self._line.write(f"WARNING: {text}")

    # What is written.

    def _watch(self) -> None:
        while not self._over.wait(1 if self._line.moves else 5):
            assert self.progress is not None
            self.progress.look()
            self.acquire()
            try:
                self._show()
            finally:
                self.release()

    def _show(self) -> None:
        if self.progress is not None and not self._over.is_set():
            self._line.show(self.progress.share, self.progress.words())
