"""The loop over batches: host and device overlap, and out-of-memory halves the token budget."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from virnucpro.embedding.batch import Batch, Work
from virnucpro.embedding.outputs import Outputs
from virnucpro.embedding.packing import SPECIAL_TOKENS, batch_end
from virnucpro.embedding.pooling import segment_sums, weigh
from virnucpro.embedding.progress import Progress
from virnucpro.errors import UserError
from virnucpro.models.segments import Segments

Forward = Callable[[Tensor, Segments, Sequence[int]], Mapping[int, Tensor]]

IN_FLIGHT = 2
"""Batches that the host prepares ahead of the device."""


@dataclass
class RunCounts:
    """What one run did: ``budget`` is the token budget at its end, ``retries`` how often it was halved."""

    tokens: int = 0
    batches: int = 0
    retries: int = 0
    budget: int = 0


@dataclass
class _Pending:
    """Results of the pieces ``begin`` to ``end`` on their way to the host."""

    begin: int
    end: int
    sums: dict[int, Tensor]
    residues: dict[int, Tensor]
    arrived: torch.cuda.Event | None


def run_work(
    forward: Forward,
    work: Work,
    outputs: Outputs,
    *,
    device: torch.device,
    budget: int,
    names: Sequence[str],
    progress: Progress,
    logger: logging.Logger,
) -> RunCounts:
    """Run every piece and add its sums (and residues) to ``outputs``.

    Args:
        forward: a :class:`PackedESM2`, or anything called like it.
        budget: tokens of a batch at first.
        names: ids of the proteins, for errors.

    Raises:
        UserError: one protein alone does not fit into the device's memory, or the GPU failed.
    """
    counts = RunCounts(budget=budget)
    pending: deque[_Pending] = deque()
    layers = tuple(outputs.mean)
    begin = 0
    with torch.inference_mode():
        while begin < len(work):
            end = batch_end(work.tokens_before, begin, counts.budget)
            try:
                batch = work.batch(begin, end, device)
                pending.append(_start(forward, batch, layers, begin, end, bool(outputs.residues)))
            except RuntimeError as error:
                if is_device_failure(error):
                    raise _gpu_failed(device, error) from error
                if not is_out_of_memory(error):
                    raise
                tokens = int(work.tokens_before[end] - work.tokens_before[begin])
                if end - begin == 1:
                    raise _too_large(names[int(work.row[begin])], tokens, device) from None
                counts.budget = tokens // 2
                counts.retries += 1
                logger.warning("out of memory with %d tokens a batch: going on with %d", tokens, counts.budget)
            else:
                begin = end
                counts.batches += 1
                while len(pending) > (IN_FLIGHT if device.type == "cuda" else 0):
                    _collect(pending.popleft(), work, outputs, progress, device)
                continue
            # Outside of the handler, where the traceback no longer holds the failed batch's tensors.
            if device.type == "cuda":
                torch.cuda.empty_cache()
        while pending:
            _collect(pending.popleft(), work, outputs, progress, device)
    counts.tokens = int(work.tokens_before[-1])
    return counts


def _start(forward: Forward, batch: Batch, layers: Sequence[int], begin: int, end: int, per_residue: bool) -> _Pending:
    sums: dict[int, Tensor] = {}
    residues: dict[int, Tensor] = {}
    for layer, hidden in forward(batch.tokens, batch.segments, layers).items():
        weighted = weigh(hidden, batch.weights)
        sums[layer] = _to_host(segment_sums(weighted, batch.segments))
        if per_residue:
            residues[layer] = _to_host(weighted)
    arrived = None
    if batch.tokens.is_cuda:
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(batch.tokens.device))
    return _Pending(begin, end, sums, residues, arrived)


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _collect(done: _Pending, work: Work, outputs: Outputs, progress: Progress, device: torch.device) -> None:
    if done.arrived is not None:
        try:
            done.arrived.synchronize()
        except RuntimeError as error:
            if is_device_failure(error):
                raise _gpu_failed(device, error) from error
            raise
    pieces = slice(done.begin, done.end)
    rows, lengths = work.row[pieces], work.length[pieces]
    outputs.add_sums(rows, {layer: values.numpy() for layer, values in done.sums.items()})
    if done.residues:
        arrays = {layer: values.numpy() for layer, values in done.residues.items()}
        place = 0
        for piece in range(done.begin, done.end):
            own = slice(place + 1, place + 1 + int(work.length[piece]))
            outputs.add_residues(
                int(work.row[piece]), int(work.start[piece]), {layer: values[own] for layer, values in arrays.items()}
            )
            place = own.stop + 1
    proteins = int((work.start[pieces] == 0).sum())
    residues = int(lengths.sum())
    progress.add(proteins, residues, residues + SPECIAL_TOKENS * len(lengths))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, as torch, cuBLAS or the CPU's allocator say it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(word in str(error) for word in ("CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate"))


def is_device_failure(error: RuntimeError) -> bool:
    """Whether the GPU itself failed (an assert, an illegal access, a lost device): CUDA is then unusable."""
    if is_out_of_memory(error):
        return False
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def _too_large(name: str, tokens: int, device: torch.device) -> UserError:
    return UserError(
        f"protein {name!r} does not fit into the memory of {device} even alone ({tokens} tokens): use a GPU "
        "with more memory, a smaller model, or long_proteins policy window with a smaller longest"
    )


def _gpu_failed(device: torch.device, error: Exception) -> UserError:
    first = str(error).strip().splitlines()[0]
    return UserError(f"{device} failed ({first}): this process cannot use it any more; run the same command again")
