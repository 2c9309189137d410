"""A job on several devices: one process each, the proteins shared out by cost, rows gathered in order."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from virnucpro.embedding.devices import share_out
from virnucpro.embedding.embed import Embeddings, Protein
from virnucpro.embedding.gather import gather
from virnucpro.embedding.settings import EmbeddingSettings
from virnucpro.errors import UserError
from virnucpro.weights.manifest import WeightsManifest


class _Worker:
    """One device's process and the thread that reads what it says."""

    def __init__(self, device: str, task: dict[str, Any], logger: logging.Logger, ended: queue.Queue[_Worker]) -> None:
        self.device = device
        self.result: dict[str, Any] | None = None
        self.arrays: dict[str, np.ndarray] = {}
        self.error: str | None = None
        self.defect: str | None = None
        self._logger = logger
        self._ended = ended
        self.process = subprocess.Popen(
            [sys.executable, "-m", "virnucpro.embedding.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
        )
        self._thread = threading.Thread(target=self._talk, args=(task,), daemon=True)
        self._thread.start()

    def _talk(self, task: dict[str, Any]) -> None:
        try:
            stdin, out = cast(BinaryIO, self.process.stdin), cast(BinaryIO, self.process.stdout)
            stdin.write(json.dumps(task).encode() + b"\n")
            stdin.flush()  # and left open: its end would end the worker
            for line in out:
                event = json.loads(line)
                if "log" in event:
                    self._logger.log(event["log"][0], "%s: %s", self.device, event["log"][1])
                elif "result" in event:
                    self.arrays = {name: _read_array(out, *kind) for name, *kind in event["arrays"]}
                    self.result = event["result"]
                else:
                    self.error, self.defect = event.get("error"), event.get("defect")
        except (OSError, ValueError, EOFError) as error:
            self.result = None
            self._logger.debug("%s: %s", self.device, error)
        finally:
            self.process.wait()
            self._ended.put(self)

    def check(self) -> None:
        """Raise what the process failed with, if it did."""
        if self.error is not None:
            raise UserError(f"{self.device}: {self.error}")
        if self.defect is not None:
            raise RuntimeError(f"the process of {self.device} failed:\n{self.defect}")
        if self.result is None:
            code = self.process.returncode
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise UserError(
                f"the process of {self.device} ended with {how} before it was done "
                "(too little main memory is the usual cause): give the job more memory and run the same command again"
            )

    def stop(self) -> None:
        self.process.kill()
        self._thread.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def embed_on_devices(
    proteins: Sequence[Protein],
    weights: Path,
    manifest: WeightsManifest,
    settings: EmbeddingSettings,
    *,
    devices: Sequence[str],
    logger: logging.Logger,
) -> Embeddings:
    """Embed proteins on several devices at once; a failure of one ends all.

    Args and result as :func:`virnucpro.embedding.embed.embed_proteins`; rows keep the proteins' order.

    Raises:
        UserError: what a device's process raised, with the device's name, or that it was killed.
    """
    lengths = np.array([len(protein.sequence) for protein in proteins])
    shares = share_out(lengths, len(devices), manifest.embed_dim)
    threads = max(1, torch.get_num_threads() // len(devices))
    ended: queue.Queue[_Worker] = queue.Queue()
    workers: list[_Worker] = []
    try:
        for device, rows in zip(devices, shares, strict=True):
            task = {
                "proteins": [(proteins[row].id, proteins[row].sequence.decode()) for row in rows],
                "weights": str(weights),
                "manifest": asdict(manifest),
                "settings": asdict(settings),
                "device": device,
                "threads": threads,
            }
            workers.append(_Worker(device, task, logger, ended))
        for _ in workers:
            ended.get().check()
    finally:
        for worker in workers:
            worker.stop()
    return gather([(worker.result or {}, worker.arrays) for worker in workers], shares)


def _environment() -> dict[str, str]:
    """Our environment, with the package found where this process found it."""
    root = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{known}" if known else root}


def _read_array(file: BinaryIO, dtype: str, shape: list[int]) -> np.ndarray:
    array = np.empty(shape, dtype=np.dtype(dtype))
    left = array.data.cast("B") if array.size else memoryview(b"")
    while left:
        count = file.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the arrays are cut short")
        left = left[count:]
    return array
