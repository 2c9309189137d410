"""A sample that is split by itself, as tests want it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from virnucpro.base.settings import InputPolicies, LongProteins
from virnucpro.chunking.manifest import ONE_SAMPLE, SplitSettings
from virnucpro.chunking.split import Find, SplitCounts, ToSplit, split_samples
from virnucpro.sequences.intake import PROTEINS, Kind


def split_proteins(
    inputs: Sequence[Path],
    index: Path,
    chunks: Path,
    skipped: Path | None = None,
    *,
    chunk_residues: int,
    embed_dim: int = 2560,
    multiple_of: int = 1,
    long_proteins: LongProteins = LongProteins(),
    policies: InputPolicies = InputPolicies(),
    made_as: Sequence[str] | None = None,
    kind: Kind = PROTEINS,
    find: Find | None = None,
    logger: logging.Logger | None = None,
) -> SplitCounts:
    """Split one sample by itself; arguments as for :func:`split_samples`, :class:`ToSplit` and :class:`SplitSettings`.

    The table of skipped records is ``skipped.tsv`` beside ``chunks`` where nothing else is said.
    """
    settings = SplitSettings(chunk_residues, multiple_of, embed_dim, long_proteins, policies)
    sample = ToSplit(inputs, index, skipped or Path(chunks).with_name("skipped.tsv"), made_as)
    record = split_samples({ONE_SAMPLE: sample}, chunks, settings, kind=kind, find=find, logger=logger)
    return SplitCounts(**record.samples[ONE_SAMPLE].counts)
