"""A job on several devices: a process each, whose rows are joined from files.

Each process reads the chunk itself, embeds its share, and writes one .npy file a tensor into a folder beside the
job's output; nothing but log lines and errors goes through a pipe.
"""

from __future__ import annotations

import heapq
import json
import logging
import selectors
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.base.atomic import remove, scratch_directory
from virnucpro.base.records import write_record
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.engine.embed import ProteinEmbeddings
from virnucpro.engine.processes import DeviceProcess, DeviceProcessEnded
from virnucpro.models.precision import parameter_dtype
from virnucpro.storage.chunk_metadata import DeviceRun, RunStatistics, header_entries, read_header_entries
from virnucpro.storage.chunk_writer import ResidueRegion

TASK_FILE = "task.json"
RUN_FILE = "run.json"
DIGESTS_FILE = "blocks.json"


@dataclass(frozen=True)
class ShareTask:
    """What one device's process is told, in a file: embed share number ``share`` (from 0) of ``shares`` of a chunk.

    ``region`` is where residues go, where they are wanted.
    """

    FORMAT: ClassVar[str] = "virnucpro-share-3"

    fasta: str
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
    processes: Sequence[DeviceProcess],
    tasks: Sequence[ShareTask],
    rows: Sequence[NDArray[np.int64]],
    output: Path,
    logger: logging.Logger,
) -> tuple[ProteinEmbeddings, dict[int, bytes]]:
    """Embed a chunk on several devices at once.

    An error of one ends all. The share of one whose process is killed is embedded once more, when the others are done.

    Args:
        processes: one a device, which wait for a task.
        tasks: one a device.
        rows: the rows of each task's share.
        output: the job's output, beside which the parts are kept for a while.

    Returns:
        All proteins' embeddings, in row order, but for residues, which each device has put into its region; and the
        digests of the blocks that these fill.

    Raises:
        UserError: what a device's process raised, with the device's name, or that it was killed twice.
        RuntimeError: a process failed with anything else.
    """
    with scratch_directory(output) as folder:
        parts = [folder / f"share_{task.share}" for task in tasks]
        killed = _run_shares(processes, tasks, parts, logger)
        if killed:
            with ExitStack() as running:
                for error in killed.values():
                    logger.warning("%s; its proteins are embedded once more", error)
                again = [tasks[share] for share in killed]
                fresh = [running.enter_context(DeviceProcess(task.device)) for task in again]
                for error in _run_shares(fresh, again, [parts[share] for share in killed], logger).values():
                    raise error
        return join_parts(parts, rows), {
            block: digest for part in parts for block, digest in read_digests(part).items()
        }


def _run_shares(
    processes: Sequence[DeviceProcess], tasks: Sequence[ShareTask], parts: Sequence[Path], logger: logging.Logger
) -> dict[int, DeviceProcessEnded]:
    """Have each process do a task and leave it in a folder; those that were killed before, by their shares' numbers."""
    killed: dict[int, DeviceProcessEnded] = {}
    with selectors.DefaultSelector() as said:
        for process, task, part in zip(processes, tasks, parts, strict=True):
            remove(part)
            part.mkdir()
            write_record(part / TASK_FILE, task)
            process.begin(part)
            said.register(process.events, selectors.EVENT_READ, (process, task))
        while said.get_map():
            for key, _ in said.select():
                process, task = key.data
                try:
                    goes_on = process.listen(logger)
                except DeviceProcessEnded as error:
                    killed[task.share], goes_on = error, False
                if not goes_on:
                    said.unregister(key.fileobj)
    return killed


def write_part(part: Path, embeddings: ProteinEmbeddings, digests: Mapping[int, bytes]) -> None:
    """Write a share's embeddings into its folder, and the digests of the blocks that it has filled."""
    for name, tensor in embeddings.tensors.items():
        np.save(part / f"{name}.npy", tensor)
    (part / RUN_FILE).write_text(json.dumps(header_entries(embeddings.run)))
    (part / DIGESTS_FILE).write_text(json.dumps({block: digest.hex() for block, digest in digests.items()}))


def read_digests(part: Path) -> dict[int, bytes]:
    """The digests that :func:`write_part` wrote."""
    found = json.loads((part / DIGESTS_FILE).read_text())
    return {int(block): bytes.fromhex(digest) for block, digest in found.items()}


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
    texts["ended"] = max(run.ended for run in runs)
    # Side by side: the time is the slowest one's.
    times = {name: max(getattr(run.statistics, name) for run in runs) for name in ("seconds", "load_seconds")}
    statistics = replace(RunStatistics.sum([run.statistics for run in runs]), **times)
    return ProteinEmbeddings(joined, replace(runs[0], precisions=precisions, statistics=statistics, **texts))


def _range_of(dtype: str) -> float:
    """The largest number of a format: what overflows in one is computed in one of a larger range."""
    return torch.finfo(parameter_dtype(getattr(torch, dtype))).max
