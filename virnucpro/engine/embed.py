"""Proteins to embeddings on one device."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro import __version__
from virnucpro.base.errors import UserError
from virnucpro.base.settings import EmbeddingSettings, resolve_layers
from virnucpro.chunking.cost import embedded_residues
from virnucpro.engine.batch import PackedPieces, cut_into_pieces, padding_avoided
from virnucpro.engine.load import choose_steps, current_device, device_name, load_packed, parse_device
from virnucpro.engine.run import (
    Outputs,
    Progress,
    RunCounts,
    default_budget,
    peak_memory_bytes,
    reset_peak_memory,
    run_batches,
)
from virnucpro.models.esm2.alphabet import tokenise
from virnucpro.models.esm2.model import PackedESM2
from virnucpro.models.precision import dtype_name, exact_products, resolve_precision
from virnucpro.storage.chunk_metadata import DeviceRun, RunStatistics
from virnucpro.weights.manifest import WeightsManifest


@dataclass(frozen=True)
class Protein:
    """A protein to embed: id and cleaned residues."""

    id: str
    sequence: bytes


@dataclass(frozen=True)
class ProteinEmbeddings:
    """Embeddings of proteins in the order they were given.

    Attributes:
        tensors: named and shaped as in a chunk file (see :mod:`virnucpro.storage.chunk_file`), all but ``digests``.
        run: where and how they were computed.
    """

    tensors: dict[str, NDArray[Any]]
    run: DeviceRun


def embed_proteins(
    proteins: Sequence[Protein],
    weights: Path,
    manifest: WeightsManifest,
    settings: EmbeddingSettings,
    *,
    device: str | torch.device = "cpu",
    logger: logging.Logger,
) -> ProteinEmbeddings:
    """Embed proteins on one device.

    Proteins whose values are not finite in half precision are computed once more in a wider type: float32, or
    bfloat16 where float32 weights do not fit.

    Raises:
        UserError: an unknown device or layer, a residue without a token, a protein that does not
            fit into memory or has no finite embedding in any type.
    """
    device = parse_device(device)
    architecture = manifest.architecture
    layers = resolve_layers(settings.layers, architecture.layers)
    tokens = [tokenise(protein.sequence, protein.id) for protein in proteins]
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
    pieces = cut_into_pieces(lengths, settings.long_policy, settings.longest, settings.overlap)
    embedded = embedded_residues(lengths, settings.long_policy, settings.longest)
    names = [protein.id for protein in proteins]

    dtype = resolve_precision(settings.precision, device)
    reset_peak_memory(device)
    loading = time.perf_counter()
    with exact_products(), current_device(device):
        model = load_packed(weights, manifest, device=device, dtype=dtype, logger=logger)
        packed = PackedPieces(tokens, pieces)
        if settings.kernels == "auto":
            choose_steps(model, dtype, logger)
        started = time.perf_counter()
        outputs = Outputs(embedded, layers, architecture.embed_dim, per_residue="per_residue" in settings.pooling)
        counts = _run(model, packed, outputs, settings, names, logger)
        attention, kernel = model.attention.implementation, model.attention.name
        layers_run = model.steps.name
        bad = outputs.not_finite()
        precision = np.zeros(len(proteins), dtype=np.uint8)
        precisions = [dtype_name(dtype)]
        if len(bad):
            if dtype == torch.float32:
                raise _never_finite(names, bad, dtype)
            del model
            logger.warning(
                "%d of %d proteins overflow in %s: once more in a wider type", len(bad), len(names), precisions[0]
            )
            model = _load_wider(weights, manifest, device, dtype, logger)
            again = _run_again(model, tokens, bad, outputs, settings, names, logger)
            counts.tokens += again.tokens
            counts.retries += again.retries
            precision[bad] = 1
            precisions.append(dtype_name(model.dtype))
        outputs.finish()
    seconds = time.perf_counter() - started
    tensors: dict[str, NDArray[Any]] = {
        "lengths": lengths.astype(np.int32),
        "windows": np.bincount(pieces.row, minlength=len(proteins)).astype(np.int32),
        "embedded": embedded.astype(np.int32),
        "precision": precision,
    }
    if "mean" in settings.pooling:
        tensors |= {f"mean.{layer}": values for layer, values in outputs.mean.items()}
    if outputs.residues:
        tensors |= {"offsets": outputs.offsets}
        tensors |= {f"residues.{layer}": values for layer, values in outputs.residues.items()}
    statistics = RunStatistics(
        proteins=len(proteins),
        residues=int(lengths.sum()),
        tokens=counts.tokens,
        seconds=seconds,
        load_seconds=started - loading,
        padding_avoided=padding_avoided(pieces.length, counts.budget),
        peak_memory_bytes=peak_memory_bytes(device),
        out_of_memory_retries=counts.retries,
        recomputed=len(bad),
    )
    run = DeviceRun(tuple(precisions), attention, kernel, device_name(device), layers_run, versions(), statistics)
    return ProteinEmbeddings(tensors, run)


def _run(
    model: PackedESM2,
    packed: PackedPieces,
    outputs: Outputs,
    settings: EmbeddingSettings,
    names: Sequence[str],
    logger: logging.Logger,
) -> RunCounts:
    kept = len(outputs.mean) * (2 if outputs.residues else 1)
    budget = settings.token_budget or default_budget(model.architecture, model.device, kept, model.dtype)
    where = f"{device_name(model.device)}, {model.attention.name}"
    residues, tokens = int(packed.length.sum()), int(packed.tokens_before[-1])
    progress = Progress(len(names), residues, tokens, where=where, logger=logger)
    try:
        return run_batches(
            model, packed, outputs, device=model.device, budget=budget, names=names, progress=progress, logger=logger
        )
    finally:
        progress.close()


def _load_wider(
    weights: Path, manifest: WeightsManifest, device: torch.device, dtype: torch.dtype, logger: logging.Logger
) -> PackedESM2:
    """The model for what overflowed: float32; where that does not fit, bfloat16, which has float32's range."""
    try:
        return load_packed(weights, manifest, device=device, dtype=torch.float32, logger=logger)
    except UserError as error:
        if dtype != torch.float16:
            raise
        wider = resolve_precision("bf16", device)
        logger.warning("%s; what overflowed is computed in bfloat16 instead", error)
        return load_packed(weights, manifest, device=device, dtype=wider, logger=logger)


def _run_again(
    model: PackedESM2,
    tokens: Sequence[np.ndarray],
    rows: np.ndarray,
    outputs: Outputs,
    settings: EmbeddingSettings,
    names: Sequence[str],
    logger: logging.Logger,
) -> RunCounts:
    """Run some proteins with another model and put the results in place of the first ones."""
    own = [tokens[row] for row in rows]
    own_names = [names[row] for row in rows]
    lengths = np.array([len(ids) for ids in own])
    packed = PackedPieces(own, cut_into_pieces(lengths, settings.long_policy, settings.longest, settings.overlap))
    replaced = Outputs(
        outputs.embedded[rows], tuple(outputs.mean), model.architecture.embed_dim, per_residue=bool(outputs.residues)
    )
    counts = _run(model, packed, replaced, settings, own_names, logger)
    bad = replaced.not_finite()
    if len(bad):
        raise _never_finite(own_names, bad, model.dtype)
    outputs.replace(rows, replaced)
    return counts


def _never_finite(names: Sequence[str], rows: np.ndarray, dtype: torch.dtype) -> UserError:
    first = ", ".join(repr(names[row]) for row in rows[:3])
    return UserError(
        f"{len(rows)} protein(s) have no finite embedding even in {dtype_name(dtype)} (first: {first}): "
        "the weights are damaged; prepare them again from the checkpoint"
    )


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    try:
        fair_esm = version("fair-esm")
    except PackageNotFoundError:
        fair_esm = "not installed"
    return {
        "virnucpro": __version__,
        "torch": torch.__version__,
        "fair-esm": fair_esm,
        "python": platform.python_version(),
    }
