"""The run of a model over batches: sums over pieces are taken on the device and come back into arrays in row order.

Host and device overlap; where memory runs out the token budget is halved; log lines say at a steady pace how far it is.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from virnucpro.base.errors import UserError
from virnucpro.base.text import clock_time
from virnucpro.cuda.devices import device_name
from virnucpro.engine.batch import PackedPieces, batch_end
from virnucpro.engine.outputs import Outputs, first_tokens, segment_maxima, segment_sums, weigh
from virnucpro.models.base import Model
from virnucpro.models.precision import parameter_dtype


class Progress:
    """Counts what is done and says so every ``interval`` seconds."""

    def __init__(
        self,
        proteins: int,
        *,
        where: str,
        logger: logging.Logger,
        heard: Callable[[int], None] | None = None,
        interval: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: ``proteins`` in all; ``where`` names device and attention; ``heard`` is told the tokens of batches."""
        self.proteins = proteins
        self._known = [0, 0]
        self.done = [0, 0, 0]
        self._where = where
        self._logger = logger
        self._interval = interval
        self._clock = clock
        self._started = self._spoken = clock()
        self._heard = heard

    def expect(self, proteins: int, tokens: int) -> None:
        """That so many of the proteins have so many tokens; the others are taken to be like them."""
        self._known[0] += proteins
        self._known[1] += tokens

    @property
    def tokens(self) -> int:
        """All tokens, as far as they are known."""
        return self._known[1] * self.proteins // max(self._known[0], 1)

    def add(self, proteins: int, residues: int, tokens: int) -> None:
        """Count one batch."""
        for index, count in enumerate((proteins, residues, tokens)):
            self.done[index] += count
        if self._heard is not None:
            self._heard(tokens)
        now = self._clock()
        if now - self._spoken >= self._interval:
            self._spoken = now
            self._logger.info(self.line())

    def line(self) -> str:
        """One line: per cent, proteins, residues, rate, time left, device, attention."""
        seconds = max(self._clock() - self._started, 1e-9)
        rate = self.done[2] / seconds
        left = (self.tokens - self.done[2]) / rate if rate else 0.0
        share = 100 * self.done[2] / max(self.tokens, 1)
        return (
            f"{share:3.0f} %  {self.done[0]:,} of {self.proteins:,} proteins, {self.done[1]:,} residues, "
            f"{rate:,.0f} tokens/s, {clock_time(left)} left, {self._where}"
        )


CPU_BUDGET = 4096
"""Larger batches leave the caches of a CPU and gain nothing (measured on two cores with 8M to 150M)."""

GPU_BUDGET = 32768
"""Enough rows for the matrix products of the larger models to run at full rate."""

LOWEST_BUDGET = 1024


def bytes_per_token(embed_dim: int, layers_kept: int, dtype: torch.dtype) -> int:
    """Device memory that one more token in a batch takes, at the highest point of a layer run eagerly.

    Counted in float32 channels: residual stream old and new, the norm's output (4 in all); q, k, v
    and the rotary's temporaries (8) or the feed-forward's two hidden layers (8, in the model's
    dtype), of which the larger counts; the layers kept, and their weighted copy.
    """
    width = parameter_dtype(dtype).itemsize
    channels = 4 * 4 + max(8 * 4, 8 * width + 4 * width) + 4 * (layers_kept + 2)
    return channels * embed_dim


def default_budget(
    embed_dim: int,
    device: torch.device,
    layers_kept: int,
    dtype: torch.dtype,
    free_bytes: int | None = None,
) -> int:
    """Tokens of a batch for a device.

    Args:
        free_bytes: free memory of the GPU, the model's weights already on it; asked of CUDA when None.
    """
    if device.type != "cuda":
        return CPU_BUDGET
    if free_bytes is None:
        free_bytes = torch.cuda.mem_get_info(device)[0]
    wanted = GPU_BUDGET * min(4, max(1, 1280 // embed_dim))
    fitting = int(0.7 * free_bytes) // bytes_per_token(embed_dim, layers_kept, dtype)
    return max(LOWEST_BUDGET, min(wanted, fitting // 1024 * 1024))


IN_FLIGHT = 2
"""Batches that the host prepares ahead of the device."""


@dataclass
class RunCounts:
    """What one run did: ``budget`` is the token budget at its end, ``retries`` how often it was halved."""

    tokens: int = 0
    retries: int = 0
    budget: int = 0


@dataclass
class _Pending:
    """Results of the pieces ``begin`` to ``end`` of ``packed`` on their way to the host.

    ``residues`` are without special tokens; ``narrow`` tells for each layer whether a value was beyond float16.
    ``windowed`` are the weighted residues of pieces that are not whole proteins, for their maxima.
    """

    packed: PackedPieces
    begin: int
    end: int
    sums: dict[int, Tensor] = field(default_factory=dict)
    first: dict[int, Tensor] = field(default_factory=dict)
    maxima: dict[int, Tensor] = field(default_factory=dict)
    windowed: dict[int, Tensor] = field(default_factory=dict)
    residues: dict[int, Tensor] = field(default_factory=dict)
    narrow: list[Tensor] = field(default_factory=list)
    arrived: torch.cuda.Event | None = None


def run_model(
    model: Model,
    portions: Iterable[PackedPieces],
    outputs: Outputs,
    *,
    names: Sequence[str],
    token_budget: int | None = None,
    heard: Callable[[int], None] | None = None,
    logger: logging.Logger,
) -> RunCounts:
    """Run every piece through a model, with progress in the log, and add what comes back to ``outputs``.

    Args:
        portions: of the proteins, in order; a portion's ``outputs.embedded`` must be there when it comes.
        names: ids of the proteins, for errors.
        token_budget: tokens of a batch at first; None takes it from the device's free memory.
        heard: is told the tokens of each batch that is done.

    Raises:
        UserError: one protein alone does not fit into the device's memory, or the GPU failed.
    """
    facts = model.facts
    device = facts.device
    kept = len(outputs.mean) * (1 + 2 * (outputs.residues is not None) + (outputs.max is not None))
    counts = RunCounts(budget=token_budget or default_budget(facts.embed_dim, device, kept, facts.dtype))
    where = f"{device_name(device)}, {facts.attention}"
    progress = Progress(len(names), where=where, heard=heard, logger=logger)
    pending: deque[_Pending] = deque()
    copies = None
    if device.type == "cuda" and outputs.residues is not None:
        copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        for packed in portions:
            counts.tokens += int(packed.tokens_before[-1])
            progress.expect(packed.proteins, int(packed.tokens_before[-1]))
            begin = 0
            while begin < len(packed):
                end = batch_end(packed.tokens_before, begin, counts.budget)
                try:
                    pending.append(_start(model, outputs, _Pending(packed, begin, end), device, copies))
                except RuntimeError as error:
                    if is_device_failure(error):
                        raise _gpu_failed(device, error) from error
                    if not is_out_of_memory(error):
                        raise
                    tokens = int(packed.tokens_before[end] - packed.tokens_before[begin])
                    if end - begin == 1:
                        raise _too_large(names[int(packed.row[begin])], tokens, device) from None
                    counts.budget = tokens // 2
                    counts.retries += 1
                    logger.warning("out of memory with %d tokens a batch: going on with %d", tokens, counts.budget)
                else:
                    begin = end
                    while len(pending) > (IN_FLIGHT if device.type == "cuda" else 0):
                        _collect(pending.popleft(), outputs, progress, device)
                    continue
                # Outside of the handler, where the traceback no longer holds the failed batch's tensors.
                if device.type == "cuda":
                    torch.cuda.empty_cache()
        while pending:
            _collect(pending.popleft(), outputs, progress, device)
    return counts


def _start(
    model: Model, outputs: Outputs, found: _Pending, device: torch.device, copies: torch.cuda.Stream | None
) -> _Pending:
    """Run a batch; what is wanted of it is on its way to the host then, residues on a stream of their own."""
    packed, begin, end = found.packed, found.begin, found.end
    batch = packed.batch(begin, end, device)
    is_part = packed.length[begin:end] != outputs.embedded[packed.row[begin:end]]  # and not the whole protein
    residues = windowed = None
    is_narrow = False
    if outputs.residues is not None:
        residues = packed.residues(begin, end, device)
        # Sums over windows are taken in float32.
        is_narrow = outputs.residues.sink.dtype == np.float16 and not is_part.any()
    if outputs.max is not None and is_part.any():
        windowed = packed.residues(begin, end, device, is_part)
    pieces = end - begin  # without the segment of no piece that may follow
    for layer, hidden in model(batch.tokens, batch.segments, tuple(outputs.mean)).items():
        weighted = weigh(hidden, batch.weights)
        found.sums[layer] = _to_host(segment_sums(weighted, batch.segments)[:pieces])
        if outputs.bos is not None:
            found.first[layer] = _to_host(first_tokens(hidden, batch.segments)[:pieces])
        if outputs.max is not None:
            found.maxima[layer] = _to_host(segment_maxima(hidden, batch.weights, batch.segments)[:pieces])
        if windowed is not None:
            found.windowed[layer] = _to_host(weighted.index_select(0, windowed))
        if residues is not None:
            values = weighted.index_select(0, residues).to(torch.float16 if is_narrow else torch.float32)
            if is_narrow:
                found.narrow.append(_to_host(torch.isinf(values).any()))
            found.residues[layer] = _beside(values, copies)
    if device.type == "cuda":
        found.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        found.arrived.record(torch.cuda.current_stream(device) if copies is None else copies)
    return found


def _beside(values: Tensor, stream: torch.cuda.Stream | None) -> Tensor:
    """A copy in pinned memory, made on a stream beside what the device computes next."""
    if stream is None:
        return values
    stream.wait_stream(torch.cuda.current_stream(values.device))
    with torch.cuda.stream(stream):
        host = _to_host(values)
    values.record_stream(stream)
    return host


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _collect(done: _Pending, outputs: Outputs, progress: Progress, device: torch.device) -> None:
    if done.arrived is not None:
        try:
            done.arrived.synchronize()
        except RuntimeError as error:
            if is_device_failure(error):
                raise _gpu_failed(device, error) from error
            raise
    packed, pieces = done.packed, slice(done.begin, done.end)
    rows, lengths = packed.row[pieces], packed.length[pieces]
    outputs.add_sums(rows, _arrays(done.sums))
    if outputs.bos is not None:
        outputs.bos.add(rows, _arrays(done.first))
    if outputs.max is not None:
        outputs.max.add(rows, packed.start[pieces], lengths, _arrays(done.maxima), _arrays(done.windowed))
    if outputs.residues is not None:
        outputs.residues.add(
            rows,
            packed.start[pieces],
            lengths,
            _arrays(done.residues),
            last=packed.start[pieces] + lengths == outputs.embedded[rows],
            finite=outputs.finite(rows),
            narrow=any(bool(flag) for flag in done.narrow),
        )
    proteins = int((packed.start[pieces] == 0).sum())
    residues = int(lengths.sum())
    progress.add(proteins, residues, residues + packed.special * len(lengths))


def _arrays(tensors: Mapping[int, Tensor]) -> dict[int, np.ndarray]:
    return {layer: values.numpy() for layer, values in tensors.items()}


def reset_peak_memory(device: torch.device) -> None:
    """Begin to count the most memory that tensors on a CUDA device take."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call] # in a process that has not used CUDA there is no counter to reset
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory since :func:`reset_peak_memory`; on a CPU, that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


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
