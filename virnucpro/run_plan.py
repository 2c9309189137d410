"""What is said before a run begins: its samples, what is done, and what the rest takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from virnucpro.base.text import size
from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.config import RunConfig
from virnucpro.models.esm2 import sizes as esm2
from virnucpro.models.mosaic_bert import sizes as mosaic_bert
from virnucpro.models.reference import DEMO_WARNINGS, ModelRef, planning_architecture
from virnucpro.report.plan import Planned, planned_text
from virnucpro.slurm.sizing import MEGABYTE, embed_memory_mb
from virnucpro.storage.state import RunState

FEW = 4
"""Samples that are told one by one where a run begins; a dry run tells more."""

RESIDUES_OF_A_PROTEIN = 300
"""About; of a chunk that is not cut yet."""


def plan_text(run: RunConfig, state: RunState, planned: Sequence[Planned], most: int = FEW) -> str:
    """The plan in words, ``most`` samples in a line each: chunks, what is done, time, disk, memory, download, logs."""
    lines = [planned_text(run, [part for part in planned if part.exact or not part.of_bases], most)]
    takes = _memory(run, planned) + _download(run.model, is_there=state.weights_stale() is None)
    if run.calls is not None:
        takes += _download(run.calls.model, is_there=(run.resources / f"{run.calls.model.name}.safetensors").exists())
    lines.append(" ".join([*takes, f"Logs: {run.results / 'logs'}, .snakemake/log."]))
    return "\n".join(lines)


def _memory(run: RunConfig, planned: Sequence[Planned]) -> list[str]:
    """What an embed job takes of the host's memory."""
    tokens = max((part.tokens for part in planned if part.chunks and not part.of_bases), default=0)
    if not tokens:
        return []
    residues = min(tokens, run.chunk_size.residues)
    chunk = ChunkManifest("", 1 + residues // RESIDUES_OF_A_PROTEIN, residues, 0, "")
    needed = embed_memory_mb(
        planning_architecture(run.model),
        chunk,
        layers=len(run.embedding.layers),
        vectors=run.embedding.vectors,
        per_residue="per_residue" in run.embedding.pooling,
        gpus=run.gpus_per_job if run.device == "gpu" else 0,
    )
    return [f"Memory: about {size(needed * MEGABYTE)} a job."]


def _download(model: ModelRef, *, is_there: bool) -> list[str]:
    """What has to be fetched for a released model that is neither prepared nor in torch hub's cache."""
    if is_there or model.place is not None or model.name in DEMO_WARNINGS:
        return []
    folder = os.getenv("TORCH_HOME") or Path(os.getenv("XDG_CACHE_HOME") or Path.home() / ".cache", "torch")
    if Path(folder, "hub", "checkpoints", f"{model.name}.pt").exists():
        return []
    released = {**esm2.RELEASED, **mosaic_bert.RELEASED}.get(model.name)
    much = "" if released is None else f", {size(released.size)}"
    return [f"Download: {model.name}{much}, unless huggingface_hub's cache has it."]
