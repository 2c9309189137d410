"""The state of a configured run: what is wanted of each sample, and which files no longer are what is wanted."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from virnucpro.base.digest import FileDigests
from virnucpro.calling.state import NUCLEOTIDES, CallFiles, CallsState, ClassifierRequest, NucleotideRequest
from virnucpro.models.reference import planning_architecture
from virnucpro.samples import COMPRESSION_ENDINGS
from virnucpro.storage.report_record import REPORT
from virnucpro.storage.sample_files import PoolRequest, SampleRequest, sources_text
from virnucpro.storage.state import DIGESTS, MISSING, RunState
from virnucpro.weights.manifest import WeightsRequest

if TYPE_CHECKING:
    from virnucpro.config import RunConfig  # reads YAML, which the package in Python does without


def run_state(run: RunConfig) -> RunState:
    """What a configuration asks for, to be compared with the files that are there."""
    digests = FileDigests(run.results / DIGESTS)
    width = planning_architecture(run.model).embed_dim
    window = run.window if run.input == "nucleotide" else None
    samples = {
        name: SampleRequest(
            *(run.results / name, files, window, run.tables, run.policies),
            metadata=run.metadata,
            neighbours=run.neighbours,
        )
        for name, files in run.samples.items()
    }
    weights = WeightsRequest.of(run.model, run.resources, digests)
    how = (run.chunk_sizes, run.device, run.embedding, run.split_policies)
    pool = PoolRequest.of(run.results, width, *how, sources_text(run.reuse, run.reuse_devices))
    return RunState(samples, weights, digests, pool, run.draws_samples)


def calls_state(run: RunConfig, state: RunState) -> CallsState | None:
    """What a configuration asks for of calls, if it does; ``state`` is that of the proteins."""
    calls = run.calls
    if calls is None:
        return None
    width = planning_architecture(calls.model, "dnabert_s").embed_dim
    samples = {
        name: NucleotideRequest(run.results / name, files, run.window, run.tables, run.policies)
        for name, files in run.samples.items()
    }
    how = (calls.chunk_sizes, run.device, calls.embedding, run.split_policies)
    pool = PoolRequest.of(run.results / NUCLEOTIDES, width, *how, state.pool.sources)
    weights = WeightsRequest.of(calls.model, run.resources, state.digests)
    models = (state.weights.model, weights.model)
    return CallsState(
        state,
        RunState(samples, weights, state.digests, pool),
        ClassifierRequest.of(calls.classifier, models, run.resources, state.digests),
        calls.rule,
    )


SMALL = 4_000_000
"""Bytes of a sample's FASTA files: a job of its own costs seconds to start, and so many are merged in one."""

TOGETHER = 100
"""Small samples that one job does, at most."""

FEWEST_JOBS = 4
"""So many jobs at least do them, side by side."""

FEW = 16
"""So many small samples, or fewer, have jobs of their own."""


def samples_together(run: RunConfig) -> list[tuple[str, ...]]:
    """The samples of each job that does several: small ones, where there are many, in the order of the run."""
    small = [name for name, files in run.samples.items() if sum(map(_bytes, files)) <= SMALL]
    if len(small) <= FEW:
        return []
    jobs = max(FEWEST_JOBS, -(-len(small) // TOGETHER))
    return [tuple(small[len(small) * job // jobs : len(small) * (job + 1) // jobs]) for job in range(jobs)]


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size * (PACKED if path.suffix in COMPRESSION_ENDINGS else 1)
    except OSError:
        return 0


PACKED = 3
"""How many times larger a packed file is when it is read, about."""


def end_dates_to_come(state: RunState, results: Path) -> None:
    """Date what earlier runs made and what bears a date to come as of now.

    Snakemake calls a job failed whose output is older than one of its inputs, and reads the dates of outputs before it
    asks whether they are stale.
    """
    now = time.time()
    made = [state.weights.file, results / "gpu.json", results / "summary.json"]
    made += [*state.pool.tensors.glob("*"), *state.pool.chunks.glob("*")]
    for request in state.samples.values():
        made += [request.translation, request.translated, request.index, request.report]
        made += [request.plots, request.neighbours_record]
        files = CallFiles(request.folder)
        made += [files.scores, files.scores_record, *files.calls.glob("*"), files.call_plots]
    for path in made:
        with suppress(OSError):
            if path.stat().st_mtime >= now:
                os.utime(path, (now - 1, now - 1))


def stale_tables(state: RunState, calls: CallsState | None = None) -> list[str]:
    """A line for each table in the samples' folders that is not what the present inputs and settings give."""
    lines = []
    if calls is not None:
        for sample in state.samples:
            reason = calls.calls_stale(sample)
            if reason not in (None, MISSING):
                lines.append(f"{calls.files(sample).calls} is not what is asked for now ({reason})")
    for sample, request in state.samples.items():
        reason = state.tables_stale(sample)
        if reason not in (None, MISSING):
            lines.append(f"{request.folder}: its tables are not what is asked for now ({reason})")
    return lines


def other_samples(state: RunState, results: Path) -> list[str]:
    """Folders of earlier samples that this configuration does not name; their tables are left as they are."""
    names = {request.folder.name for request in state.samples.values()}
    found = sorted(path.parent.name for path in results.glob(f"*/{REPORT}"))
    return [name for name in found if name not in names]


def unasked_calls(state: RunState) -> list[Path]:
    """Folders of calls that an earlier run has made, for one that asks for none: they are left as they are."""
    folders = (CallFiles(request.folder).calls for request in state.samples.values())
    return [folder for folder in folders if folder.exists()]
