"""What every job of the workflow shares: its log, and how it ends when something goes wrong.

Where the run shows a display (:mod:`virnucpro.display`), a job writes to its log alone, and the display reads it.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import FrameType
from typing import TextIO

from virnucpro.base.atomic import cannot_write
from virnucpro.base.limits import STOPS, check_limits, keep_freed_memory, let_waiting_threads_sleep, sentence_for
from virnucpro.base.text import printable

LINE = "%(asctime)s %(message)s"
CLOCK = "%H:%M:%S"
WARNING, ERROR, STOPPED = "WARNING: ", "error: ", "stopped by "
"""What the messages of warnings, and the sentence that ends a job, begin with."""

DISPLAY = "VIRNUCPRO_DISPLAY"
"""The environment's word on what a run shows. Jobs find there which file the display writes to."""

OWN_LINES, PLAN_ALONE = "snakemake", "plan"
"""Such words: Snakemake's own lines; of a dry run the plan, and not the jobs."""


@contextmanager
def job(name: str, log: str | Path | None = None, *, shows: int = logging.INFO) -> Iterator[logging.Logger]:
    """Run a job's body with a logger that writes to ``log`` and to standard error.

    A :class:`UserError`, a full disk, too little memory or another limit of the system, and SIGTERM or SIGINT (Ctrl-C)
    end the process with one sentence, as the last line of the log, and exit code 1 (128 and the signal's number after
    a signal). Any other exception is a defect of ours: it is raised again, and its traceback is in the log too.

    What takes long to import, or may fail to, is imported in the block.

    Args:
        name: what the lines on standard error begin with.
        log: the job's log file; None for standard error alone.
        shows: the level of messages that go to standard error.
    """
    logger = logging.getLogger("virnucpro")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    said = _Quiet(sys.stderr)
    said.setFormatter(_Printable(f"[{name}] %(message)s"))
    said.addFilter(lambda record: record.levelno >= shows or (shows < logging.ERROR and _is_warning(record)))
    handlers: list[_Quiet] = [said]
    logger.addHandler(said)
    before = {number: signal.signal(number, _Stop()) for number in STOPS}
    try:
        if log is not None:
            handlers.append(_log_file(Path(log)))
            logger.addHandler(handlers[-1])
            if (shown := os.environ.get(DISPLAY)) and shown == standard_error():
                _leave_to_display(said, handlers[-1])
        check_limits()
        let_waiting_threads_sleep()
        keep_freed_memory()
        yield logger
        sys.stdout.flush()
    except Stopped as error:
        logger.error("%s%s before it was done; run the same command again to go on", STOPPED, error)
        raise SystemExit(128 + error.number) from None
    except Exception as error:
        sentence = sentence_for(error)
        if sentence is None:
            logger.exception("this is a defect of virnucpro; please report it with these lines")
            raise
        logger.error("%s%s", ERROR, sentence)
        raise SystemExit(1) from None
    finally:
        atexit.register(_ignore_stops)  # last, so that it is called first
        for number, handler in before.items():
            signal.signal(number, handler)
        for each in handlers:
            logger.removeHandler(each)
            with suppress(OSError):  # a full disk: the sentence is on standard error too
                each.close()


def _ignore_stops() -> None:
    """What is done is done: a signal while libraries are being taken down would only print their tracebacks."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


class Stopped(BaseException):
    """A signal has come: Ctrl-C, or a scheduler preempts the job or its time is up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return "Ctrl-C (SIGINT)" if self.number == signal.SIGINT else signal.Signals(self.number).name


class _Stop:
    """Raises at the first signal. Those that follow at once (an impatient user, a scheduler that sends two) find the
    process removing what it has begun, and are passed over."""

    _last = -inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now > _Stop._last + 5:
            _Stop._last = now
            raise Stopped(number)


class _Printable(logging.Formatter):
    """Texts of others (ids, names, a server's words) cannot begin a line of their own or steer a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.levelno == logging.WARNING and not record.message.startswith(WARNING):
            record.message = WARNING + record.message
        record.message = "\n    ".join(map(printable, record.message.split("\n")))
        return super().formatMessage(record)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno == logging.WARNING or record.getMessage().startswith(WARNING)


class _Quiet(logging.StreamHandler[TextIO]):
    """Drops a line that cannot be written, as on a full disk, instead of printing a traceback. A moving line is taken
    away meanwhile."""

    has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        # Without a line nothing of tqdm is entered: a signal in its first use would end in an error of its own.
        is_shown = tqdm is not None and bool(getattr(tqdm.tqdm, "_instances", ()))
        with tqdm.tqdm.external_write_mode(self.stream) if tqdm is not None and is_shown else nullcontext():
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        self.has_failed = True


def _leave_to_display(said: _Quiet, log: _Quiet) -> None:
    """Say nothing on standard error but what the log can't hold; what libraries say there goes to the log."""
    said.setStream(os.fdopen(os.dup(2), "w", encoding="utf-8"))
    said.addFilter(lambda record: log.has_failed)
    logger = logging.getLogger("virnucpro")
    logger.removeHandler(said)
    logger.addHandler(said)  # after the log, of which it then knows whether it could be written
    os.dup2(log.stream.fileno(), 2)


def _log_file(path: Path) -> _Quiet:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _Quiet(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise cannot_write(path, error) from None
    handler.setFormatter(_Printable(LINE, CLOCK))
    return handler


def standard_error() -> str:
    """Which file this process's standard error is: another one in a job of a cluster, which has a log there."""
    try:
        found = os.fstat(2)
    except OSError:
        return ""
    return f"{found.st_dev}:{found.st_ino}"


TAIL = 1 << 16
"""Bytes of a log's end that are looked at."""

_LINE = re.compile(r"(?:\d\d:\d\d:\d\d )(.*)")
_SHARE = re.compile(r" *(\d{1,3}) %  [\d,]+ of ")


@dataclass(frozen=True)
class JobLog:
    """What a job's log tells: its warnings, the share (0 to 1) of its proteins that is done, and why it failed.

    ``reason`` is the sentence that ended the job, or None; ``end`` its last lines.
    """

    warnings: tuple[str, ...] = ()
    share: float = 0.0
    reason: str | None = None
    end: tuple[str, ...] = ()


def read_job_log(path: Path) -> JobLog:
    """What :func:`job` has written so far; of a log that is not there, nothing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read(TAIL).decode(errors="replace").splitlines()
    except OSError:
        return JobLog()
    said = [found[1] for found in map(_LINE.fullmatch, lines) if found]
    warnings = [text.removeprefix(WARNING) for text in said if text.startswith(WARNING)]
    shares = [int(found[1]) / 100 for found in map(_SHARE.match, said) if found]
    reasons = [text for text in said[-1:] if text.startswith((ERROR, STOPPED))]
    return JobLog(
        tuple(dict.fromkeys(warnings)),
        shares[-1] if shares else 0.0,
        reasons[0].removeprefix(ERROR) if reasons else None,
        tuple(lines[-12:]),
    )
