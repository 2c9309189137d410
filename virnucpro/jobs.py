"""What every job of the workflow shares: its log, and how it ends when something goes wrong."""

from __future__ import annotations

import atexit
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from types import FrameType
from typing import TextIO

from virnucpro.base.atomic import cannot_write
from virnucpro.base.limits import STOPS, check_limits, let_waiting_threads_sleep, sentence_for
from virnucpro.base.text import printable

LINE = "%(asctime)s %(message)s"
CLOCK = "%H:%M:%S"


@contextmanager
def job(name: str, log: str | Path | None = None) -> Iterator[logging.Logger]:
    """Run a job's body with a logger that writes to ``log`` and to standard error.

    A :class:`UserError`, a full disk, too little memory or another limit of the system, and SIGTERM or SIGINT (Ctrl-C)
    end the process with one sentence, as the last line of the log, and exit code 1 (128 and the signal's number after
    a signal). Any other exception is a defect of ours: it is raised again, and its traceback is in the log too.

    What takes long to import, or may fail to, is imported in the block.

    Args:
        name: what the lines on standard error begin with.
        log: the job's log file; None for standard error alone.
    """
    logger = logging.getLogger("virnucpro")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers: list[logging.Handler] = [_Quiet(sys.stderr)]
    handlers[0].setFormatter(_Printable(f"[{name}] %(message)s"))
    logger.addHandler(handlers[0])
    before = {number: signal.signal(number, _Stop()) for number in STOPS}
    try:
        if log is not None:
            handlers.append(_log_file(Path(log)))
            logger.addHandler(handlers[1])
        check_limits()
        let_waiting_threads_sleep()
        yield logger
        sys.stdout.flush()
    except Stopped as error:
        logger.error("stopped by %s before it was done; run the same command again to go on", error)
        raise SystemExit(128 + error.number) from None
    except Exception as error:
        sentence = sentence_for(error)
        if sentence is None:
            logger.exception("this is a defect of virnucpro; please report it with these lines")
            raise
        logger.error("error: %s", sentence)
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
        record.message = "\n    ".join(map(printable, record.message.split("\n")))
        return super().formatMessage(record)


class _Quiet(logging.StreamHandler[TextIO]):
    """Drops a line that cannot be written, as on a full disk, instead of printing a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def _log_file(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _Quiet(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise cannot_write(path, error) from None
    handler.setFormatter(_Printable(LINE, CLOCK))
    return handler
