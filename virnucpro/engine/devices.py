"""A job on several devices: a process each, whose rows are joined from files.

Each process reads the chunk itself, embeds its share, and writes one .npy file a tensor into a folder beside the
job's output; nothing but log lines and errors goes through a pipe.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.base.atomic import scratch_directory
from virnucpro.base.errors import UserError
from virnucpro.base.records import write_record
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.engine.embed import ProteinEmbeddings
from virnucpro.storage.chunk_metadata import DeviceRun, RunStatistics, header_entries, read_header_entries
from virnucpro.storage.chunk_writer import ResidueRegion

RUN_FILE = "run.json"
DIGESTS_FILE = "blocks.npz"


@dataclass(frozen=True)
class ShareTask:
    """What one device's process is told, in a file: embed share number ``share`` (from 0) of ``shares`` of a chunk.

    ``region`` is where residues go, where they are wanted.
    """

    FORMAT: ClassVar[str] = "virnucpro-share-2"

    fasta: str
    chunk_manifest: str
    weights: str
    settings: EmbeddingSettings
    share: int
    shares: int
    device: str
    threads: int
    region: ResidueRegion | None


def balanced_shares(costs: NDArray[np.float64], shares: int) -> list[NDArray[np.int64]]:
    """Split proteins into shares of about equal cost: the most costly one goes to the share that has least so far.

    Args:
        costs: of each protein, ``(n,)``.

    Returns:
        For each share the ascending row numbers of its proteins; with few proteins some shares are empty.
    """
    least = [(0.0, share) for share in range(shares)]
    share_of = np.empty(len(costs), np.int64)
    for row in np.argsort(-costs, kind="stable"):
        held, share = least[0]
        share_of[row] = share
        heapq.heapreplace(least, (held + float(costs[row]), share))
    return [np.flatnonzero(share_of == share) for share in range(shares)]


def embed_on_devices(
    tasks: Sequence[ShareTask], rows: Sequence[NDArray[np.int64]], output: Path, logger: logging.Logger
) -> tuple[ProteinEmbeddings, dict[int, bytes]]:
    """Embed a chunk on several devices at once; a failure of one ends all.

    Args:
        tasks: one a device.
        rows: the rows of each task's share.
        output: the job's output, beside which the parts are kept for a while.

    Returns:
        All proteins' embeddings, in row order, but for residues, which each device has put into its region; and the
        digests of the blocks that these fill.

    Raises:
        UserError: what a device's process raised, with the device's name, or that it was killed.
    """
    with scratch_directory(output) as folder, ExitStack() as running:
        parts = [folder / f"share_{task.share}" for task in tasks]
        with selectors.DefaultSelector() as said:
            for task, part in zip(tasks, parts, strict=True):
                part.mkdir()
                worker = _Worker(task, part, logger)
                running.callback(worker.stop)
                said.register(worker.events, selectors.EVENT_READ, worker)
            while said.get_map():
                for key, _ in said.select():
                    if not key.data.listen():
                        said.unregister(key.fileobj)
        return join_parts(parts, rows), {
            block: digest for part in parts for block, digest in read_digests(part).items()
        }


class _Worker:
    """One device's process."""

    def __init__(self, task: ShareTask, part: Path, logger: logging.Logger) -> None:
        self._device = task.device
        self._logger = logger
        write_record(part / "task.json", task)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "virnucpro.engine.worker", str(part)],
            stdin=subprocess.PIPE,  # says nothing; its end tells the process that we have gone
            stdout=subprocess.PIPE,
            bufsize=0,
            env=_environment(),
        )
        self.events = cast(IO[bytes], self._process.stdout)

    def listen(self) -> bool:
        """Take one line of what the process says; False when it has ended well.

        Raises:
            UserError: the process failed with one, or was killed.
            RuntimeError: the process failed with anything else.
        """
        line = self.events.readline()
        if not line:
            self._check_end(self._process.wait())
            return False
        kind, *content = json.loads(line)
        if kind == "log":
            self._logger.log(content[0], "%s: %s", self._device, content[1])
            return True
        if kind == "error":
            raise UserError(f"{self._device}: {content[0]}")
        raise RuntimeError(f"the process of {self._device} failed:\n{content[0]}")

    def _check_end(self, code: int) -> None:
        if code:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise UserError(
                f"the process of {self._device} ended with {how} before it was done "
                "(too little main memory is the usual cause): give the job more memory and run the same command again"
            )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _environment() -> dict[str, str]:
    """Our environment, with the package found where this process found it."""
    root = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{known}" if known else root}


def write_part(part: Path, embeddings: ProteinEmbeddings, digests: Mapping[int, bytes]) -> None:
    """Write a share's embeddings into its folder, and the digests of the blocks that it has filled."""
    for name, tensor in embeddings.tensors.items():
        np.save(part / f"{name}.npy", tensor)
    blocks = np.frombuffer(b"".join(digests.values()), np.uint8).reshape(len(digests), -1 if digests else 0)
    np.savez(part / DIGESTS_FILE, blocks=np.array(list(digests), np.int64), digests=blocks)
    (part / RUN_FILE).write_text(json.dumps(header_entries(embeddings.run)))


def read_digests(part: Path) -> dict[int, bytes]:
    """The digests that :func:`write_part` wrote."""
    with np.load(part / DIGESTS_FILE) as found:
        return {block: row.tobytes() for block, row in zip(found["blocks"].tolist(), found["digests"], strict=True)}


def join_parts(parts: Sequence[Path], rows: Sequence[NDArray[np.int64]]) -> ProteinEmbeddings:
    """Put each part's proteins into the rows that they belong to; a part is read as it is needed, not as a whole.

    Args:
        rows: for each part the row numbers of its proteins, in the part's order.
    """
    runs = [read_header_entries(json.loads((part / RUN_FILE).read_text()), DeviceRun, part) for part in parts]

    def tensors(name: str) -> list[NDArray[Any]]:
        return [np.load(part / f"{name}.npy", mmap_mode="r") for part in parts]

    def in_rows(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        whole = np.empty((sum(map(len, rows)), *values[0].shape[1:]), values[0].dtype)
        for share, own in zip(rows, values, strict=True):
            whole[share] = own
        return whole

    names = {path.stem for path in parts[0].glob("*.npy")}
    joined = {name: in_rows(tensors(name)) for name in names - {"precision"}}
    precisions = tuple(sorted({name for run in runs for name in run.precisions}, key=_range_of))
    codes = [np.array([precisions.index(name) for name in run.precisions], np.uint8) for run in runs]
    joined["precision"] = in_rows([code[own] for code, own in zip(codes, tensors("precision"), strict=True)])
    different = ("attention", "attention_kernel", "device", "layers_run")
    texts: dict[str, Any] = {name: " + ".join(dict.fromkeys(getattr(run, name) for run in runs)) for name in different}
    statistics = _joined_statistics([run.statistics for run in runs])
    return ProteinEmbeddings(joined, replace(runs[0], precisions=precisions, statistics=statistics, **texts))


def _range_of(dtype: str) -> float:
    """The largest number of a format: what overflows in one is computed in one of a larger range."""
    return torch.finfo(getattr(torch, dtype)).max


def _joined_statistics(parts: Sequence[RunStatistics]) -> RunStatistics:
    """Counts add up; the time is the slowest device's, and the memory the fullest one's."""
    tokens = sum(part.tokens for part in parts)
    padded = sum(part.tokens / (1 - part.padding_avoided) for part in parts)
    return RunStatistics(
        proteins=sum(part.proteins for part in parts),
        residues=sum(part.residues for part in parts),
        tokens=tokens,
        seconds=max(part.seconds for part in parts),
        load_seconds=max(part.load_seconds for part in parts),
        padding_avoided=1 - tokens / padded if padded else 0.0,
        peak_memory_bytes=max(part.peak_memory_bytes for part in parts),
        out_of_memory_retries=sum(part.out_of_memory_retries for part in parts),
        recomputed=sum(part.recomputed for part in parts),
    )
