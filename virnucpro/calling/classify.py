"""Contigs, and features or scores of their frames in, a folder of calls out: whole, or as it was before."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro import __version__
from virnucpro.base.atomic import atomic_directory
from virnucpro.base.digest import Products, file_sha256, files_of, recorded
from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record, write_record
from virnucpro.base.settings import InputPolicies
from virnucpro.base.text import number
from virnucpro.calling.classifier import Classifier
from virnucpro.calling.contigs import contig_calls, window_scores
from virnucpro.calling.frames import Frames, placed_frames, score_frames
from virnucpro.calling.rule import CallRule
from virnucpro.calling.state import DEMO_WARNING, RECORD, CallsRecord, calls_origin
from virnucpro.calling.tables import write_contigs, write_frames, write_regions, write_viral, write_windows
from virnucpro.sequences.intake import Intake
from virnucpro.sequences.translation import CONTIGS
from virnucpro.storage.state import translation_origin

if TYPE_CHECKING:
    from virnucpro.calling.features import Features  # reads VirNucPro's files with torch, which scores do without


def classify(
    inputs: Sequence[Path],
    features: Features,
    classifier: Classifier,
    output: Path,
    *,
    window: int,
    rule: CallRule | None = None,
    policies: InputPolicies | None = None,
    logger: logging.Logger | None = None,
) -> Counter[str]:
    """Score all stop-free frames of contigs and write the tables of frames, windows and contigs, FASTA and BED.

    Args:
        inputs: nucleotide FASTA files.
        features: of their frames.
        output: the folder to write; one of an earlier call is replaced.
        window: bases of a window.

    Returns:
        how many contigs got each call.

    Raises:
        UserError: whatever keeps a frame from its own score; or ``output`` holds something else.
    """
    rule, policies = rule or CallRule(), policies or InputPolicies()
    log = logger or logging.getLogger(__name__)
    intake = _read_once(inputs, policies)
    made_from = calls_origin(intake.digests, "of the features given", window, rule, policies)
    made_from |= {f"features {path}": file_sha256(path) for path in features.paths}
    made_from |= {"classifier": classifier.sha256 or "random"}

    def score(folder: Path) -> Frames:
        return score_frames(intake, inputs, features, classifier, window, policies, folder, log)

    warning = "" if classifier.sha256 else DEMO_WARNING
    return _write_calls(intake, score, output, rule, made_from, warning, log)


def call_contigs(
    inputs: Sequence[Path],
    translation: Path,
    scores: Path,
    output: Path,
    *,
    window: int,
    rule: CallRule,
    policies: InputPolicies,
    logger: logging.Logger,
) -> Counter[str]:
    """As :func:`classify`, from scores that are there.

    Args:
        translation: the record of the contigs' translation, ``translated.json``.
        scores: what :func:`virnucpro.calling.join.classify_frames` has written, with its record beside it.

    Raises:
        UserError: the contigs are not those that were translated, or the scores not those that were written.
    """
    intake = _read_once(inputs, policies)
    made_from = read_record(translation, Products).made_from
    if made_from != translation_origin(intake.digests, window, policies):
        raise UserError(
            f"{', '.join(map(str, inputs))}: changed since the frames were translated; run the same command again"
        )
    record = scores.with_suffix(".json")
    proof = recorded(record, scores)
    if file_sha256(scores) != proof.sha256:
        raise UserError(f"{scores} was changed or damaged since it was written: run the same command again")
    origin = read_record(record, Products).made_from
    is_random = origin["classifier"] == "random"
    made_from = calls_origin(intake.digests, proof.sha256, window, rule, policies)
    made_from |= {name: value for name, value in origin.items() if name != "splits"}

    def score(_: Path) -> Frames:
        ids, both = _read_scores(scores)
        return placed_frames(intake, ids, both, window)

    return _write_calls(intake, score, output, rule, made_from, DEMO_WARNING if is_random else "", logger)


def _read_once(inputs: Sequence[Path], policies: InputPolicies) -> Intake:
    intake = Intake(inputs, CONTIGS, policies)
    for _ in intake.first_reading():
        pass
    return intake


def _read_scores(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        table = pq.read_table(path)
        both = [table.column(name).to_numpy() for name in ("score_others", "score_virus")]
        return table.column("id").to_pylist(), np.stack(both, axis=1).astype(np.float32)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as scores ({error}): run the same command again") from None


def _write_calls(
    intake: Intake,
    score: Callable[[Path], Frames],
    output: Path,
    rule: CallRule,
    made_from: Mapping[str, str],
    warning: str,
    log: logging.Logger,
) -> Counter[str]:
    if output.exists() and not (output / RECORD).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} is there and holds no calls, so it is left as it is: give another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(output) as folder:
        frames = score(folder)
        windows = window_scores(frames)
        calls = contig_calls(frames, windows, rule)
        write_frames(folder, frames)
        write_windows(folder, windows)
        write_contigs(folder / "contigs.tsv", frames, calls)
        write_regions(folder / "viral_regions.bed", frames, windows)
        write_viral(folder / "viral_contigs.fasta", intake, frames, calls)
        counts = Counter(call.call for call in calls)
        reasons = Counter(contig.reason for contig in frames.contigs if contig.reason)
        files = files_of(sorted(folder.iterdir()), folder)
        origin = {**made_from, "version": __version__}
        write_record(folder / RECORD, CallsRecord(origin, dict(counts), dict(reasons), files, warning))
    log.info("%s: %s", number(len(calls), "contig"), ", ".join(f"{n:,} {call}" for call, n in counts.items()) or "none")
    for reason, count in reasons.items():
        log.info("%s not scored: %s", number(count, "contig"), reason)
    if warning:
        log.warning("%s", warning)
    return counts
