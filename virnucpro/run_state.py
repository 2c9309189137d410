"""The state of a configured run: what is wanted of each sample, and which files no longer are what is wanted."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from virnucpro.base.digest import FileDigests
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.chunking.manifest import SplitSettings
from virnucpro.config import RunConfig
from virnucpro.storage.identity import TableSettings
from virnucpro.storage.report_record import REPORT
from virnucpro.storage.state import MISSING, RunState, SampleRequest, WeightsRequest
from virnucpro.weights.manifest import weights_name

DIGESTS = ".digests.json"
"""In the folder of results: the sha256 of files that were read, so that they are not read again (see FileDigests)."""


def run_state(run: RunConfig) -> RunState:
    """What a configuration asks for, to be compared with the files that are there."""
    digests = FileDigests(run.results / DIGESTS)
    split = SplitSettings(
        *(run.chunk_residues, run.chunks_multiple_of, run.embed_dim, run.long_policy, run.longest, run.overlap),
        policies=run.split_policies,
    )
    embedding = EmbeddingSettings(**run.embedding)
    tables = TableSettings(run.formats, run.dtype, run.records_per_file)
    window = run.nucleotide_window if run.input == "nucleotide" else None
    samples = {
        name: SampleRequest(run.results / name, files, window, split, embedding, tables, run.policies)
        for name, files in run.samples.items()
    }
    return RunState(samples, wanted_weights(run.model, run.model_path, run.resources, digests), digests)


def wanted_weights(model: str, checkpoint: Path | None, folder: Path, digests: FileDigests) -> WeightsRequest:
    """The weights of a model, and where they are kept.

    Args:
        checkpoint: the model's file, when it was given by its path: it is then known by its contents.

    Raises:
        OSError: the checkpoint cannot be read.
    """
    if checkpoint is None:
        return WeightsRequest(model, folder / f"{model}.safetensors", None)
    sha256 = digests.sha256(checkpoint)
    name = weights_name(checkpoint, sha256)
    return WeightsRequest(name, folder / f"{name}.safetensors", sha256)


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
