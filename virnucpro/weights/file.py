"""The file of prepared weights: safetensors, with its manifest in the metadata; written once, verified when loaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from virnucpro.base.atomic import atomic_path, is_still
from virnucpro.base.errors import UserError
from virnucpro.base.limits import check_space, is_out_of_memory
from virnucpro.base.records import record_text
from virnucpro.base.safetensors_header import TensorEntry, header_bytes
from virnucpro.checkpoints.adapter import Adapter
from virnucpro.weights.manifest import (
    METADATA_ENTRY,
    TOKENIZER_ENTRY,
    WAY_OUT,
    WeightsManifest,
    open_weights,
    read_weights_header,
)

BLOCK = 1 << 22
"""Bytes that are hashed at once; blocks are hashed side by side, so that 3B's weights take a second or two."""

THREADS = 4
"""Blocks hashed at the same time when weights are read."""

UNKNOWN = "0" * 64

_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
_ALIGNMENT = 64


def digest(entries: Mapping[str, TensorEntry], blocks: Iterable[bytes], tokenizer: str = "") -> str:
    """What stands for weights: sha256 over the header's tensor entries, the sha256 of each 4 MiB block, the tokenizer.

    Args:
        entries: dtype, shape and place of each tensor.
        blocks: the sha256 digests of the blocks, in order.
    """
    total = hashlib.sha256(json.dumps(entries, sort_keys=True, separators=(",", ":")).encode())
    for block in blocks:
        total.update(block)
    total.update(tokenizer.encode())
    return total.hexdigest()


def kept_dtype(name: str, tensor: Tensor, adapter: Adapter | None = None) -> torch.dtype:
    """What prepared weights hold a tensor in: its own dtype, but float32 instead of float64 and for what was merged."""
    is_merged = adapter is not None and name in adapter.changes
    return torch.float32 if is_merged or tensor.dtype == torch.float64 else tensor.dtype


def write_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    manifest: WeightsManifest,
    *,
    source: Path,
    adapter: Adapter | None = None,
    tokenizer: str = "",
) -> WeightsManifest:
    """Write tensors as a safetensors file, whole or not at all; one at a time is made and in memory.

    The library is not used for writing because before 0.8 it copies all tensors to memory first, which is 30 GB
    for the 15B model, and because equal weights are to give equal bytes whatever its version.

    Args:
        manifest: all that is known of the weights but their ``sha256``.
        source: the checkpoint, for messages.
        adapter: what is merged into them.
        tokenizer: see :attr:`virnucpro.models.base.Checkpoint.tokenizer`.

    Returns:
        The manifest with the ``sha256``, as it is in the file.

    Raises:
        UserError: a tensor holds a number that is not finite, or the disk is full.
    """
    entries: dict[str, TensorEntry] = {}
    end = 0
    for name, tensor in tensors.items():
        dtype = kept_dtype(name, tensor, adapter)
        begin, end = end, end + tensor.numel() * dtype.itemsize
        entries[name] = TensorEntry(_NAMES[dtype], tuple(tensor.shape), begin, end)
    check_space(Path(path).parent, end, f"writing the weights of {manifest.model}", largest=end)
    hasher = _BlockHasher()
    with atomic_path(path) as beside, beside.open("wb") as file:
        header = _header_bytes(entries, replace(manifest, sha256=UNKNOWN), tokenizer)
        file.write(header)
        for name, tensor in tensors.items():
            merged = tensor if adapter is None else adapter.merged(name, tensor)
            flat = merged.detach().to(kept_dtype(name, tensor, adapter)).reshape(-1)
            for start in range(0, flat.numel(), BLOCK):
                block = flat[start : start + BLOCK]
                if not bool(block.isfinite().all()):
                    raise UserError(f"checkpoint {source} is damaged: {name} holds a number that is not finite")
                data = block.view(torch.uint8).numpy().data
                hasher.update(data)
                file.write(data)
        whole = replace(manifest, sha256=digest(entries, hasher.digests(), tokenizer))
        final = _header_bytes(entries, whole, tokenizer)
        assert len(final) == len(header)
        file.seek(0)
        file.write(final)
    return whole


@contextmanager
def verified_weights(path: Path) -> Iterator[tuple[WeightsManifest, dict[str, Tensor]]]:
    """Prepared weights, verified to the last byte while the block brings them to a device; its end waits for that.

    They are memory-mapped, so many processes share one copy.

    Returns:
        The manifest, and tensors of the stored dtype on the CPU, by the names of its architecture's ``shapes()``.

    Raises:
        UserError: no such file, cut short, damaged, or replaced while it was read.
    """
    path = Path(path)
    with open_weights(path) as file, ThreadPoolExecutor(THREADS) as pool:
        header, manifest = read_weights_header(path, file)
        found = {name: entry.shape for name, entry in header.tensors.items()}
        expected = manifest.architecture.shapes()
        for name in sorted(set(found) | set(expected)):
            if found.get(name) != expected.get(name):
                raise UserError(
                    f"weights {path} are not those of their manifest ({name} has shape {found.get(name)}, "
                    f"not {expected.get(name)}): {WAY_OUT}"
                )
        offsets = range(header.data_start, os.fstat(file.fileno()).st_size, BLOCK)
        blocks = pool.map(lambda start: hashlib.sha256(os.pread(file.fileno(), BLOCK, start)).digest(), offsets)

        def verify() -> None:
            if digest(header.tensors, blocks, header.metadata.get(TOKENIZER_ENTRY, "")) != manifest.sha256:
                raise UserError(f"weights {path} are damaged (their numbers do not give their sha256): {WAY_OUT}")
            if not is_still(file.fileno(), path):
                raise UserError(f"weights {path} were replaced while they were read: run the same command again")

        try:
            with safe_open(path, framework="pt", device="cpu") as tensors:
                state = {name: tensors.get_tensor(name) for name in header.tensors}
        except (SafetensorError, OSError) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"weights {path} are cut short or damaged ({error}): {WAY_OUT}") from None
        try:
            yield manifest, state
        except Exception:
            verify()  # damaged weights are the better reason
            raise
        verify()


def load_weights(path: Path) -> tuple[WeightsManifest, dict[str, Tensor]]:
    """What :func:`verified_weights` gives, once it is verified."""
    with verified_weights(path) as found:
        return found


def _header_bytes(entries: Mapping[str, TensorEntry], manifest: WeightsManifest, tokenizer: str) -> bytes:
    metadata = {"format": "pt", METADATA_ENTRY: record_text(manifest)}
    if tokenizer:
        metadata[TOKENIZER_ENTRY] = tokenizer
    return header_bytes(entries, metadata, alignment=_ALIGNMENT)


class _BlockHasher:
    """The sha256 of each block of a stream of bytes."""

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._current = hashlib.sha256()
        self._held = 0

    def update(self, data: memoryview) -> None:
        while len(data):
            part = data[: BLOCK - self._held]
            self._current.update(part)
            self._held += len(part)
            data = data[len(part) :]
            if self._held == BLOCK:
                self._done.append(self._current.digest())
                self._current, self._held = hashlib.sha256(), 0

    def digests(self) -> list[bytes]:
        return [*self._done, self._current.digest()] if self._held else self._done
