"""The state of a configured run: what is wanted of each sample, and which files no longer are what is wanted."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from virnucpro.base.digest import FileDigests
from virnucpro.chunking.manifest import SplitSettings
from virnucpro.models.reference import planning_architecture
from virnucpro.storage.report_record import REPORT
from virnucpro.storage.state import DIGESTS, MISSING, RunState, SampleRequest, WeightsRequest

if TYPE_CHECKING:
    from virnucpro.config import RunConfig  # reads YAML, which the package in Python does without


def run_state(run: RunConfig) -> RunState:
    """What a configuration asks for, to be compared with the files that are there."""
    digests = FileDigests(run.results / DIGESTS)
    width = planning_architecture(run.model).embed_dim
    split = SplitSettings(*run.chunk_size, width, run.embedding.long_proteins, run.split_policies)
    window = run.window if run.input == "nucleotide" else None
    samples = {
        name: SampleRequest(run.results / name, files, window, split, run.embedding, run.tables, run.policies)
        for name, files in run.samples.items()
    }
    return RunState(samples, WeightsRequest.of(run.model, run.resources, digests), digests)


def made_before(marker: Path, files: Iterable[str | Path]) -> None:
    """See to it that ``marker`` is newer than all of these, some of which may be dated in the future."""
    newest = marker.stat().st_mtime_ns
    for file in files:
        with suppress(OSError):
            if file != str(marker) and Path(file).stat().st_mtime_ns >= newest:
                os.utime(file, ns=(newest - 1_000_000_000, newest - 1_000_000_000))


def stale_tables(state: RunState) -> list[str]:
    """A line for each table in the samples' folders that is not what the present inputs and settings give."""
    lines = []
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
