"""The process of one device of several: ``python -m virnucpro.engine.worker DEVICE``.

A program of its own rather than ``multiprocessing``'s, whose spawned children run the parent's script again. It imports
torch, waits for a folder's path on standard input (as JSON, a line), does the task in that folder and leaves its
embeddings there (see :mod:`virnucpro.engine.devices`). On standard output it says
what the parent is to log or raise, a JSON list a line: ``["log", level, text]``, ``["error", sentence]`` or
``["defect", traceback]``. The end of standard input means that the parent has gone, and ends the process.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import BinaryIO

from virnucpro.base.limits import STOPS, keep_freed_memory, sentence_for
from virnucpro.engine.processes import ordinals_of, start_driver


class _Events(logging.Handler):
    """Sends log lines to the parent."""

    def __init__(self, out: BinaryIO) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        send(self._out, "log", record.levelno, record.getMessage())


def send(out: BinaryIO, *event: str | int) -> None:
    """Write one line of JSON."""
    out.write(json.dumps(event).encode() + b"\n")
    out.flush()


def main() -> int:
    for number in STOPS:  # who stops the job stops the parent too, which says so; our end follows from its own
        signal.signal(number, signal.SIG_IGN)
    # Whatever libraries print must not mix with the events.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    logger = logging.getLogger("virnucpro.worker")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_Events(out))
    keep_freed_memory()
    for ordinal in ordinals_of(sys.argv[1:]):
        start_driver(ordinal)
    try:
        from virnucpro.engine.job import run_share

        folder = _task()
        threading.Thread(target=_end_with_parent, daemon=True).start()
        run_share(folder, logger)
    except Exception as error:
        sentence = sentence_for(error)
        send(out, *(("defect", traceback.format_exc()) if sentence is None else ("error", sentence)))
        return 1
    return 0


def _task() -> Path:
    """The folder of the task, when it comes; ends the process when the parent has gone before."""
    line = b""
    while not line.endswith(b"\n"):
        if not (part := os.read(0, 4096)):
            os._exit(1)
        line += part
    return Path(json.loads(line))


def _end_with_parent() -> None:
    # The descriptor itself: a thread inside of a buffered reader would abort the interpreter's exit.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # what there is to say was said, and taking CUDA and torch down takes a second
