"""The devices that a job runs on.

Several devices' embeddings back into one, in row order.

A job on several devices: one process each, the proteins shared out by cost, rows gathered in order.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from virnucpro.base.errors import UserError
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.chunking.cost import protein_costs
from virnucpro.cuda.devices import parse_device
from virnucpro.engine.embed import Embeddings, Protein
from virnucpro.weights.manifest import WeightsManifest


def job_devices(devices: Sequence[str] | None) -> list[str]:
    """Devices by name: those given, or every CUDA device that this process sees, or the CPU.

    Raises:
        UserError: a device that is not there.
    """
    if devices:
        return [str(parse_device(device)) for device in devices]
    if torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu"]


def share_out(lengths: np.ndarray, shares: int, embed_dim: int) -> list[np.ndarray]:
    """Split proteins into shares of about equal cost.

    The most costly protein goes to the share that has least so far.

    Args:
        lengths: residues of each protein, (n,).
        shares: how many.
        embed_dim: the model's width (see :func:`virnucpro.chunking.cost.protein_costs`).

    Returns:
        For each share the ascending row numbers of its proteins; shares of few proteins may be empty.
    """
    cost = protein_costs(lengths, embed_dim=embed_dim)
    held = np.zeros(shares)
    rows: list[list[int]] = [[] for _ in range(shares)]
    for row in np.argsort(-cost, kind="stable"):
        share = int(held.argmin())
        held[share] += cost[row]
        rows[share].append(int(row))
    return [np.array(sorted(own), dtype=np.int64) for own in rows]


Part = tuple[Mapping[str, Any], Mapping[str, np.ndarray]]
"""A worker's result: precisions, provenance, statistics; and its arrays by name."""


def gather(parts: Sequence[Part], shares: Sequence[np.ndarray]) -> Embeddings:
    """Put each part's rows where ``shares`` says they belong.

    Args:
        shares: for each part the row numbers of its proteins, in the part's order.
    """
    count = sum(len(rows) for rows in shares)
    order = np.argsort(np.concatenate(shares), kind="stable")

    def rows_of(name: str) -> np.ndarray:
        return np.concatenate([arrays[name] for _, arrays in parts])[order]

    precisions = sorted({name for result, _ in parts for name in result["precisions"]}, key=_width)
    precision = np.empty(count, dtype=np.uint8)
    for (result, arrays), rows in zip(parts, shares, strict=True):
        own = np.array([precisions.index(name) for name in result["precisions"]], dtype=np.uint8)
        precision[rows] = own[arrays["precision"]]

    embedded = rows_of("embedded")
    offsets = np.concatenate(([0], embedded.astype(np.int64).cumsum()))
    layers = {kind: _layers(parts, kind) for kind in ("mean", "residues")}
    return Embeddings(
        mean={layer: rows_of(f"mean.{layer}") for layer in layers["mean"]},
        residues={layer: _residues(parts, shares, offsets, f"residues.{layer}") for layer in layers["residues"]},
        offsets=offsets,
        lengths=rows_of("lengths"),
        windows=rows_of("windows"),
        embedded=embedded,
        precision=precision,
        precisions=precisions,
        provenance={
            key: " + ".join(dict.fromkeys(result["provenance"][key] for result, _ in parts))
            for key in parts[0][0]["provenance"]
        },
        statistics=_statistics([result["statistics"] for result, _ in parts]),
    )


def _width(precision: str) -> int:
    return ("float8_e4m3fn", "float16", "bfloat16", "float32").index(precision)


def _layers(parts: Sequence[Part], kind: str) -> list[int]:
    names = parts[0][1]
    return sorted(int(name.removeprefix(f"{kind}.")) for name in names if name.startswith(f"{kind}."))


def _residues(parts: Sequence[Part], shares: Sequence[np.ndarray], offsets: np.ndarray, name: str) -> np.ndarray:
    first = parts[0][1][name]
    whole = np.empty((int(offsets[-1]), first.shape[1]), dtype=first.dtype)
    for (_, arrays), rows in zip(parts, shares, strict=True):
        place = 0
        for row, length in zip(rows, arrays["embedded"], strict=True):
            whole[offsets[row] : offsets[row + 1]] = arrays[name][place : place + length]
            place += int(length)
    return whole


def _statistics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Counts add up; the time is the slowest device's, and the memory the fullest one's."""
    longest = ("seconds", "load_seconds", "peak_memory_bytes")
    total = {key: (max if key in longest else sum)(part[key] for part in parts) for key in parts[0]}
    padded = sum(part["tokens"] / (1 - part["padding_avoided"]) for part in parts)
    total["padding_avoided"] = 1 - total["tokens"] / padded if padded else 0.0
    total["tokens_per_second"] = total["tokens"] / max(total["seconds"], 1e-9)
    return total


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
            [sys.executable, "-m", "virnucpro.engine.worker"],
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

    Args and result as :func:`virnucpro.engine.embed.embed_proteins`; rows keep the proteins' order.

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
