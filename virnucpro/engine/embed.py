"""Proteins to embeddings on one device."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from virnucpro.base.errors import UserError
from virnucpro.base.settings import EmbeddingSettings, resolve_layers
from virnucpro.cuda.devices import current_device, device_name, parse_device
from virnucpro.engine.batch import Work, cut_into_pieces, padding_avoided
from virnucpro.engine.load import load_model
from virnucpro.engine.run import Outputs, Progress, RunCounts, default_budget, run_work
from virnucpro.models.base import Model
from virnucpro.models.esm2.alphabet import tokenise
from virnucpro.models.precision import dtype_name, exact_products, resolve_precision
from virnucpro.weights.manifest import WeightsManifest


@dataclass
class Protein:
    """A protein to embed: id and cleaned residues."""

    id: str
    sequence: bytes


@dataclass
class Embeddings:
    """Embeddings of n proteins in the order they were given.

    Attributes:
        mean, residues, offsets: see :class:`Outputs`; one of the first two is empty when not asked for.
        lengths, windows, embedded: int32 ``(n,)``: residues, pieces run, residues that entered.
        precision: uint8 ``(n,)``: index into ``precisions``, the dtypes' names.
        provenance: attention, attention_kernel, device, and whether layers ran eager or fused.
        statistics: counts and rates of the run.
    """

    mean: dict[int, np.ndarray]
    residues: dict[int, np.ndarray]
    offsets: np.ndarray
    lengths: np.ndarray
    windows: np.ndarray
    embedded: np.ndarray
    precision: np.ndarray
    precisions: list[str]
    provenance: dict[str, str]
    statistics: dict[str, float] = field(default_factory=dict)


def embed_proteins(
    proteins: Sequence[Protein],
    weights: Path,
    manifest: WeightsManifest,
    settings: EmbeddingSettings,
    *,
    device: str | torch.device = "cpu",
    logger: logging.Logger,
) -> Embeddings:
    """Embed proteins on one device.

    Proteins whose values are not finite in half precision are computed again in a wider type: float32, or
    bfloat16 where float32 weights do not fit.

    Raises:
        UserError: an unknown device or layer, a residue without a token, a protein that does not
            fit into memory or has no finite embedding in any type.
    """
    place = parse_device(device)
    architecture = manifest.architecture
    layers = resolve_layers(settings.layers, architecture.layers)
    tokens = [tokenise(protein.sequence, protein.id) for protein in proteins]
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
    pieces = cut_into_pieces(lengths, settings.long_policy, settings.longest, settings.overlap)
    windows = np.bincount(pieces.row, minlength=len(proteins))
    embedded = np.minimum(lengths, settings.longest) if settings.long_policy == "truncate" else lengths
    names = [protein.id for protein in proteins]

    dtype = resolve_precision(settings.precision, place)
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    loading = time.perf_counter()
    with exact_products(), current_device(place):
        model = load_model(
            weights,
            manifest=manifest,
            device=place,
            precision=settings.precision,
            kernels=settings.kernels,
            logger=logger,
        )
        work = Work(tokens, pieces)
        started = time.perf_counter()
        outputs = Outputs(embedded, layers, architecture.embed_dim, per_residue="per_residue" in settings.pooling)
        counts = _run(model, work, outputs, settings, names, logger)
        provenance = {
            "attention": model.facts.implementation,
            "attention_kernel": model.facts.attention,
            "device": device_name(place),
            "layers_run": model.facts.layers_run,
        }
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
            model = _load_wider(weights, manifest, place, dtype, logger)
            again = _run_again(model, tokens, bad, outputs, settings, names, logger)
            counts.tokens += again.tokens
            counts.retries += again.retries
            precision[bad] = 1
            precisions.append(dtype_name(model.facts.dtype))
        outputs.finish()
    seconds = time.perf_counter() - started
    return Embeddings(
        mean=outputs.mean if "mean" in settings.pooling else {},
        residues=outputs.residues,
        offsets=outputs.offsets,
        lengths=lengths.astype(np.int32),
        windows=windows.astype(np.int32),
        embedded=embedded.astype(np.int32),
        precision=precision,
        precisions=precisions,
        provenance=provenance,
        statistics={
            "proteins": len(proteins),
            "residues": int(lengths.sum()),
            "tokens": counts.tokens,
            "seconds": seconds,
            "load_seconds": started - loading,
            "tokens_per_second": counts.tokens / max(seconds, 1e-9),
            "padding_avoided": padding_avoided(pieces.length, counts.budget),
            "peak_memory_bytes": torch.cuda.max_memory_allocated(place) if place.type == "cuda" else peak_rss_bytes(),
            "out_of_memory_retries": counts.retries,
            "recomputed": len(bad),
        },
    )


def _run(
    model: Model,
    work: Work,
    outputs: Outputs,
    settings: EmbeddingSettings,
    names: Sequence[str],
    logger: logging.Logger,
) -> RunCounts:
    kept = len(outputs.mean) * (2 if outputs.residues else 1)
    facts = model.facts
    budget = settings.token_budget or default_budget(facts, facts.device, kept, facts.dtype)
    where = f"{device_name(facts.device)}, {facts.attention}"
    residues, tokens = int(work.length.sum()), int(work.tokens_before[-1])
    progress = Progress(len(names), residues, tokens, where=where, logger=logger)
    try:
        return run_work(
            model, work, outputs, device=facts.device, budget=budget, names=names, progress=progress, logger=logger
        )
    finally:
        progress.close()


def _load_wider(
    weights: Path, manifest: WeightsManifest, place: torch.device, dtype: torch.dtype, logger: logging.Logger
) -> Model:
    """The model for what overflowed: float32; where that does not fit, bfloat16, which has float32's range."""
    try:
        return load_model(weights, manifest=manifest, device=place, precision="fp32", kernels="eager", logger=logger)
    except UserError as error:
        if dtype != torch.float16:
            raise
        logger.warning("%s; what overflowed is computed in bfloat16 instead", error)
        return load_model(weights, manifest=manifest, device=place, precision="bf16", kernels="eager", logger=logger)


def _run_again(
    model: Model,
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
    work = Work(own, cut_into_pieces(lengths, settings.long_policy, settings.longest, settings.overlap))
    replaced = Outputs(
        outputs.embedded[rows], tuple(outputs.mean), model.facts.embed_dim, per_residue=bool(outputs.residues)
    )
    counts = _run(model, work, replaced, settings, own_names, logger)
    bad = replaced.not_finite()
    if len(bad):
        raise _never_finite(own_names, bad, model.facts.dtype)
    outputs.replace(rows, replaced)
    return counts


def _never_finite(names: Sequence[str], rows: np.ndarray, dtype: torch.dtype) -> UserError:
    first = ", ".join(repr(names[row]) for row in rows[:3])
    return UserError(
        f"{len(rows)} protein(s) have no finite embedding even in {dtype_name(dtype)} (first: {first}): "
        "the weights are damaged; prepare them again from the checkpoint"
    )


def peak_rss_bytes() -> int:
    """The most memory that this process has held so far (Linux counts kilobytes, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
