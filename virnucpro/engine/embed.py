"""Proteins to embeddings on one device."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro import __version__
from virnucpro.base.errors import UserError
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.base.text import utc
from virnucpro.chunking.cost import embedded_residues
from virnucpro.cuda.devices import current_device, device_name, parse_device
from virnucpro.engine.batch import PackedAhead, PackedPieces, padding_avoided
from virnucpro.engine.load import load_model, load_tokenizer
from virnucpro.engine.outputs import Outputs, Residues, ResidueSink, ResiduesInMemory
from virnucpro.engine.run import peak_memory_bytes, reset_peak_memory, run_model
from virnucpro.models.base import Model, ModelFacts
from virnucpro.models.precision import dtype_name, exact_products, parameter_dtype, resolve_precision
from virnucpro.models.reference import resolve_layers
from virnucpro.storage.chunk_metadata import DeviceRun, RunStatistics
from virnucpro.weights.manifest import Weights


@dataclass(frozen=True)
class Protein:
    """A protein to embed: id and cleaned residues."""

    id: str
    sequence: bytes


@dataclass(frozen=True)
class ProteinEmbeddings:
    """Embeddings of proteins in the order they were given.

    Attributes:
        tensors: named and shaped as in a chunk file (see :mod:`virnucpro.storage.chunk_layout`), all but ``digests``
            and, where residues went into a sink, ``residues``.
        run: where and how they were computed.
    """

    tensors: dict[str, NDArray[Any]]
    run: DeviceRun


def embed_proteins(
    proteins: Sequence[Protein],
    weights: Weights,
    settings: EmbeddingSettings,
    *,
    device: str | torch.device = "cpu",
    sink: ResidueSink | None = None,
    heard: Callable[[int], None] | None = None,
    logger: logging.Logger,
) -> ProteinEmbeddings:
    """Embed proteins on one device.

    Args:
        sink: takes residues' vectors while they are computed, where they are wanted; None keeps them in memory.
        heard: is told the tokens of each batch that is done.

    Proteins whose values are not finite in half precision are computed once more in a wider type: float32, or
    bfloat16 where float32 weights do not fit.

    Raises:
        UserError: an unknown device or layer, a residue without a token, a protein that does not
            fit into memory or has no finite embedding in any type.
    """
    device = parse_device(device)
    tokenizer = load_tokenizer(weights)
    layers = resolve_layers(settings.layers, weights.manifest.layers)
    names = [protein.id for protein in proteins]
    letters = np.array([len(protein.sequence) for protein in proteins], dtype=np.int64)
    embedded = np.zeros(len(proteins), dtype=np.int64)
    windows = np.zeros(len(proteins), dtype=np.int32)
    tokens_of_pieces: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]

    def packed_ahead(rows: Sequence[int]) -> PackedAhead:
        chosen = [proteins[row] for row in rows]
        sequences, ids = [protein.sequence for protein in chosen], [protein.id for protein in chosen]
        return PackedAhead(sequences, ids, tokenizer, settings.long_proteins)

    def noted(portions: Iterable[PackedPieces]) -> Iterator[PackedPieces]:
        for packed in portions:
            own = slice(packed.first, packed.first + packed.proteins)
            embedded[own] = embedded_residues(packed.lengths, settings.long_proteins)
            windows[own] = np.bincount(packed.row - packed.first, minlength=packed.proteins)
            tokens_of_pieces.append(packed.length + packed.special)
            yield packed

    def load(precision: str, kernels: str) -> Model:
        path, manifest, _ = weights
        return load_model(path, manifest=manifest, device=device, precision=precision, kernels=kernels, logger=logger)

    memory: ResiduesInMemory | None = None
    reset_peak_memory(device)
    loading = time.perf_counter()
    with exact_products(), current_device(device), closing(packed_ahead(range(len(proteins)))) as portions:
        model = load(settings.precision, settings.kernels)
        facts = model.facts
        started = time.perf_counter()
        if "per_residue" in settings.pooling and sink is None:
            sink = memory = ResiduesInMemory(layers, facts.embed_dim, settings.residue_dtype)
        residues = None if sink is None else Residues(embedded, sink, names)
        outputs = Outputs(embedded, layers, facts.embed_dim, residues, pooling=settings.pooling)
        budget = settings.token_budget
        counts = run_model(
            model, noted(portions), outputs, names=names, token_budget=budget, heard=heard, logger=logger
        )
        bad = outputs.not_finite()
        precision = np.zeros(len(proteins), dtype=np.uint8)
        precisions = [dtype_name(facts.dtype)]
        if len(bad):
            if facts.dtype == torch.float32:
                raise _never_finite(names, bad, facts.dtype)
            del model
            logger.warning(
                "%d of %d proteins overflow in %s: once more in a wider type", len(bad), len(names), precisions[0]
            )
            model = _load_wider(load, facts, logger)
            own_names = [names[row] for row in bad]
            residues = None if sink is None else Residues(embedded[bad], sink, own_names)
            again = Outputs(embedded[bad], layers, facts.embed_dim, residues, pooling=settings.pooling)
            more = run_model(
                model,
                packed_ahead(bad.tolist()),
                again,
                names=own_names,
                token_budget=budget,
                logger=logger,
            )
            still_bad = again.not_finite()
            if len(still_bad):
                raise _never_finite(own_names, still_bad, model.facts.dtype)
            outputs.replace(bad, again)
            counts.tokens += more.tokens
            counts.retries += more.retries
            precision[bad] = 1
            precisions.append(dtype_name(model.facts.dtype))
        outputs.finish()
    seconds, ended = time.perf_counter() - started, utc(time.time())
    tensors: dict[str, NDArray[Any]] = {
        "lengths": letters.astype(np.int32),
        "windows": windows,
        "embedded": embedded.astype(np.int32),
        "precision": precision,
    }
    for pooling in set(settings.pooling) & set(outputs.vectors):
        tensors |= {f"{pooling}.{layer}": values for layer, values in outputs.vectors[pooling].items()}
    if outputs.residues is not None:
        tensors["starts"] = outputs.residues.starts
    if memory is not None:
        tensors |= {f"residues.{layer}": values for layer, values in memory.values.items()}
    statistics = RunStatistics(
        proteins=len(proteins),
        residues=int(letters.sum()),
        tokens=counts.tokens,
        seconds=seconds,
        load_seconds=started - loading,
        padding_avoided=padding_avoided(np.concatenate(tokens_of_pieces), counts.budget),
        peak_memory_bytes=peak_memory_bytes(device),
        out_of_memory_retries=counts.retries,
        recomputed=len(bad),
    )
    run = DeviceRun(
        precisions=tuple(precisions),
        attention=facts.implementation,
        attention_kernel=facts.attention,
        device=device_name(device),
        layers_run=facts.layers_run,
        versions=versions(),
        statistics=statistics,
        residue_dtype=settings.residue_dtype,
        host=platform.node(),
        ended=ended,
    )
    return ProteinEmbeddings(tensors, run)


def _load_wider(load: Callable[[str, str], Model], facts: ModelFacts, logger: logging.Logger) -> Model:
    """The model for what overflowed: float32; where that does not fit, bfloat16, which has float32's range."""
    try:
        return load("fp32", "eager")
    except UserError as error:
        if parameter_dtype(facts.dtype) != torch.float16:
            raise
        resolve_precision("bf16", facts.device)  # told before the other error where there is no bfloat16
        logger.warning("%s; what overflowed is computed in bfloat16 instead", error)
        return load("bf16", "eager")


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
