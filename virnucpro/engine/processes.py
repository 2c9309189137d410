"""What a job starts before it imports torch, which takes seconds: its devices' processes, and CUDA's driver.

Needs the standard library alone.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from virnucpro.base.errors import UserError


class DeviceProcessEnded(UserError):
    """A device's process was killed, or ended otherwise, without a word of its own."""


class DeviceProcess:
    """One device's process (see :mod:`virnucpro.engine.worker`); a context manager that ends it.

    Attributes:
        events: what it says, a JSON list a line.
    """

    def __init__(self, device: str) -> None:
        """Start it for a device such as "cuda:1"."""
        self._device = device
        self._process = subprocess.Popen(
            [sys.executable, "-m", "virnucpro.engine.worker", device],
            stdin=subprocess.PIPE,  # says where the task is, and its end that we have gone
            stdout=subprocess.PIPE,
            bufsize=0,
            env=_environment(),
        )
        self.events = cast(IO[bytes], self._process.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def begin(self, folder: Path) -> None:
        """Have it do the task in a folder. One that has died already is noticed when it is listened to."""
        with suppress(BrokenPipeError):
            cast(IO[bytes], self._process.stdin).write(json.dumps(str(folder)).encode() + b"\n")

    def listen(self, logger: logging.Logger) -> bool:
        """Take one line of what it says, and log what is for the log; False when it has ended well.

        Raises:
            UserError: what it raised, with the device's name.
            DeviceProcessEnded: it ended before it was done.
            RuntimeError: it failed with anything else.
        """
        line = self.events.readline()
        if line:
            kind, *content = json.loads(line)
            if kind == "log":
                logger.log(content[0], "%s: %s", self._device, content[1])
                return True
            if kind == "error":
                raise UserError(f"{self._device}: {content[0]}")
            raise RuntimeError(f"the process of {self._device} failed:\n{content[0]}")
        code = self._process.wait()
        if code:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise DeviceProcessEnded(
                f"the process of {self._device} ended with {how} before it was done "
                "(too little main memory is the usual cause): give the job more memory and run the same command again"
            )
        return False


@contextmanager
def device_processes(ordinals: Sequence[int]) -> Iterator[list[DeviceProcess]]:
    """One process a GPU, where there are several; one GPU alone is this process's own. Starts the driver here too.

    Args:
        ordinals: the GPUs' numbers in CUDA.
    """
    if ordinals:
        start_driver(ordinals[0] if len(ordinals) == 1 else None)
    with ExitStack() as running:
        yield [running.enter_context(DeviceProcess(f"cuda:{number}")) for number in ordinals if len(ordinals) > 1]


def ordinals_of(devices: Sequence[str] | None) -> list[int]:
    """CUDA's numbers of GPUs such as "cuda:1"; none where others are named, or nothing is."""
    numbers = [name.removeprefix("cuda:") for name in devices or ()]
    return [int(number) for number in numbers] if all(map(str.isdecimal, numbers)) else []


def start_driver(ordinal: int | None) -> threading.Thread:
    """Start CUDA's driver in the thread given back, where there is one; torch finds it started or, where not, says why.

    Args:
        ordinal: the device whose context is made too, the one that torch uses (CUDA driver API, primary contexts).
    """
    thread = threading.Thread(target=_start_driver, args=(ordinal,), daemon=True)
    thread.start()
    return thread


def _start_driver(ordinal: int | None) -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and ordinal is not None and driver.cuDeviceGet(ctypes.byref(device), ordinal) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


def _environment() -> dict[str, str]:
    """Our environment, with the package found where this process found it."""
    root = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{known}" if known else root}
