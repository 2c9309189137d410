"""How far one protein travels through the code, from FASTA to table: files entered, and moves from file to file.

    python -m benchmarks.one_protein

The steps of a run (split, prepare, embed, merge; the demo model, on a CPU) in one process. A call of a function counts,
a generator that goes on does not, nor does what runs while a module is imported.
"""

from __future__ import annotations

import inspect
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import virnucpro
from virnucpro.base.settings import EmbeddingSettings, LongProteins, TableSettings
from virnucpro.chunking.manifest import ONE_SAMPLE, SplitSettings, read_split
from virnucpro.chunking.split import ToSplit, split_samples
from virnucpro.engine.job import embed_chunk
from virnucpro.models.reference import ModelRef
from virnucpro.storage.chunk_metadata import identity
from virnucpro.storage.merge import merge_embeddings
from virnucpro.storage.state import table_settings
from virnucpro.storage.tables import TABLES
from virnucpro.weights.manifest import read_manifest
from virnucpro.weights.prepare import prepare_weights

ROOT = f"{Path(virnucpro.__file__).parent}/"
PROTEIN = ">one\nMKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV\n"
LOGGER = logging.getLogger("virnucpro")


class Journey:
    """Counts calls while it is the process's profiler.

    Attributes:
        entered: calls of each file's functions.
        moves: calls of another file's function than the call before.
    """

    def __init__(self) -> None:
        self.entered: Counter[str] = Counter()
        self.moves = 0
        self._last = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        goes_on = bool(code.co_flags & inspect.CO_GENERATOR) and frame.f_lasti > 8
        if event != "call" or not code.co_filename.startswith(ROOT) or goes_on or _is_imported(frame):
            return
        file = code.co_filename.removeprefix(ROOT)
        self.entered[file] += 1
        self.moves += self._last not in ("", file)
        self._last = file


def _is_imported(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(ROOT):
            return True
        frame = frame.f_back
    return False


def run(folder: Path) -> None:
    """One protein through all steps."""
    fasta, sample, chunks, tensors = folder / "one.faa", folder / "sample", folder / "chunks", folder / "tensors"
    weights = folder / "weights" / "esm2_demo.safetensors"
    fasta.write_text(PROTEIN)
    embedding, tables = EmbeddingSettings(), TableSettings()
    split = ToSplit([fasta], sample / "proteins.parquet", sample / "skipped.tsv")
    split_samples({ONE_SAMPLE: split}, chunks, SplitSettings(20_000, 1, 64, LongProteins()), logger=LOGGER)
    prepare_weights(ModelRef.of("esm2_demo"), weights, log=LOGGER.info)
    output = tensors / "chunk_00000.safetensors"
    embed_chunk(chunks / "chunk_00000.fasta", weights, output, embedding, devices=["cpu"], logger=LOGGER)
    merge_embeddings(
        sample / "proteins.parquet",
        chunks,
        tensors,
        {name: sample / TABLES[name].name for name in tables.formats},
        sample / "embeddings.json",
        expected=identity(read_manifest(weights), embedding),
        made_from=table_settings(embedding, tables),
        split=read_split(chunks),
        logger=LOGGER,
    )


def main() -> None:
    LOGGER.addHandler(logging.NullHandler())
    torch.set_num_threads(1)
    journey = Journey()
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(journey)
        try:
            run(Path(folder))
        finally:
            sys.setprofile(None)
    for file, calls in journey.entered.most_common():
        print(f"{calls:>6}  {file}")
    print(f"{len(journey.entered)} files entered, {journey.moves} moves, {journey.entered.total()} calls")


if __name__ == "__main__":
    main()
