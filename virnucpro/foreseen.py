"""What a split would find embedded already, said by a dry run: in this folder, and in earlier results."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from virnucpro.base.digest import residue_digest
from virnucpro.base.errors import UserError
from virnucpro.base.text import number
from virnucpro.chunking.manifest import CHUNK_FILES
from virnucpro.config import RunConfig
from virnucpro.sequences.fasta import read_fasta
from virnucpro.storage.pool import Finder
from virnucpro.storage.reuse import Reuse, reported_devices
from virnucpro.storage.sample_files import REUSE_INDEX
from virnucpro.storage.state import RunState

MOST = 1_000_000
"""Sequences that are looked for; of more, the first ones of each sample are."""


def foreseen(run: RunConfig, state: RunState, gpu_report: Path) -> str:
    """A sentence; or nothing, where nothing is embedded yet, all is split, or FASTA files cannot be read."""
    if state.split_stale() is None or (not run.reuse and not any(state.pool.tensors.glob(CHUNK_FILES))):
        return ""
    if run.reuse and state.manifest() is None:
        return "Reuse: what earlier results have is known once the weights are prepared."
    try:
        found = dict(_digests(run, state))
    except (UserError, OSError):
        return ""
    digests = np.frombuffer(b"".join(found), np.uint8).reshape(-1, 16)
    lengths = np.array(list(found.values()), np.int32)
    with tempfile.TemporaryDirectory() as scratch:
        reuse = None
        if run.reuse:
            # A dry run makes no folder of results.
            index = run.results / REUSE_INDEX if run.results.is_dir() else Path(scratch) / REUSE_INDEX
            devices = reported_devices(gpu_report) if gpu_report.exists() else ()
            reuse = Reuse(run.reuse, index, devices, run.reuse_devices == "any" or not devices)
        log = logging.getLogger("virnucpro.foreseen")
        kept, reused = Finder(state.pool.tensors, run.embedding, state.weights, reuse=reuse, logger=log).look(digests)
    total = max(1, int(lengths.sum(dtype=np.int64)))
    share = 100 * int(lengths[kept | reused].sum(dtype=np.int64)) / total
    of = number(len(digests), "different sequence") + (" (more were not looked at)" if len(digests) >= MOST else "")
    return (
        f"Reuse: of {of}, {int(kept.sum()):,} are embedded in {run.results} and {int(reused.sum()):,} in earlier "
        f"results: {share:.1f} % of the residues need not be computed."
    )


def _digests(run: RunConfig, state: RunState) -> Iterator[tuple[bytes, int]]:
    """The digest and length of sequences, so many of each sample that there are :data:`MOST` at most."""
    for sample, files in run.samples.items():
        left = max(1, MOST // len(run.samples))
        paths = files
        if run.input == "nucleotide":
            translated = state.samples[sample].translated
            paths = (translated,) if translated.exists() else ()
        for path in paths:
            for record in read_fasta(path):
                if not left:
                    break
                left -= 1
                yield residue_digest(record.sequence), len(record.sequence)
