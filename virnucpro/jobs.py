"""What every job of the workflow shares: its log, and how it ends when something goes wrong."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Never

from virnucpro.base.errors import UserError

LINE = "%(asctime)s %(message)s"
CLOCK = "%H:%M:%S"


@contextmanager
def job(name: str, log: str | Path | None = None) -> Iterator[logging.Logger]:
    """Run a job's body with a logger that writes to ``log`` and to standard error.

    A :class:`UserError`, a full disk or another failure of the system, and SIGTERM end the process
    with one sentence, as the last line of the log, and exit code 1 (143 after SIGTERM). Any other
    exception is a defect of ours: it is raised again, and its traceback is in the log too.

    Args:
        name: what the lines on standard error begin with.
        log: the job's log file; None for standard error alone.
    """
    logger = logging.getLogger("virnucpro")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setFormatter(logging.Formatter(f"[{name}] %(message)s"))
    if log is not None:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log, mode="w", encoding="utf-8"))
        handlers[1].setFormatter(logging.Formatter(LINE, CLOCK))
    for handler in handlers:
        logger.addHandler(handler)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield logger
    except UserError as error:
        _end(logger, str(error))
    except OSError as error:
        logger.debug("", exc_info=True)
        where = f": {error.filename}" if error.filename else ""
        _end(logger, f"{error.strerror or error}{where}; fix that and run the same command again")
    except Terminated as error:
        logger.error("stopped by SIGTERM before it was done; run the same command again to go on")
        raise SystemExit(143) from error
    except Exception:
        logger.exception("this is a defect of virnucpro; please report it with these lines")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


class Terminated(BaseException):
    """SIGTERM has come: a scheduler preempts the job or its time is up."""


def _terminated(signum: int, frame: FrameType | None) -> Never:
    raise Terminated


def _end(logger: logging.Logger, text: str) -> Never:
    logger.error("error: %s", text)
    raise SystemExit(1)
