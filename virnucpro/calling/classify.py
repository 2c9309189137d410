"""Contigs and features in, a folder of calls out: whole, or as it was before."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro import __version__
from virnucpro.base.atomic import atomic_directory
from virnucpro.base.digest import file_sha256, write_products
from virnucpro.base.errors import UserError
from virnucpro.base.settings import InputPolicies
from virnucpro.base.text import number
from virnucpro.calling.classifier import Classifier
from virnucpro.calling.contigs import ContigCall, WindowScores, call_contigs, viral_regions, window_scores
from virnucpro.calling.features import Features
from virnucpro.calling.frames import OTHERS, VIRUS, Frames, score_frames
from virnucpro.calling.rule import CallRule
from virnucpro.sequences.frames import FRAMES
from virnucpro.sequences.intake import Intake
from virnucpro.sequences.translation import CONTIGS

RECORD = "calls.json"
"""In the folder: what the calls were made from, and the sha256 of each file."""

FASTA_LINE = 70


def classify(
    inputs: Sequence[Path],
    features: Features,
    classifier: Classifier,
    output: Path,
    *,
    rule: CallRule | None = None,
    policies: InputPolicies | None = None,
    logger: logging.Logger | None = None,
) -> Counter[str]:
    """Score all stop-free frames of contigs and write the tables of frames, windows and contigs, FASTA and BED.

    Args:
        inputs: nucleotide FASTA files.
        features: of their frames.
        output: the folder to write; one of an earlier call is replaced.

    Returns:
        how many contigs got each call.

    Raises:
        UserError: whatever keeps a frame from its own score; or ``output`` holds something else.
    """
    rule, policies = rule or CallRule(), policies or InputPolicies()
    log = logger or logging.getLogger(__name__)
    if output.exists() and not (output / RECORD).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} is there and holds no calls, so it is left as it is: give another folder")
    intake = Intake(inputs, CONTIGS, policies)
    for _ in intake.first_reading():
        pass
    made_from = {f"contigs {path}": digest for path, digest in zip(inputs, intake.digests, strict=True)}
    made_from |= {f"features {path}": file_sha256(path) for path in features.paths}
    made_from |= {f"rule {name}": str(value) for name, value in asdict(rule).items()}
    made_from |= {f"policy {name}": str(value) for name, value in asdict(policies).items()}
    made_from |= {"classifier": classifier.sha256 or "random", "window": str(classifier.window), "version": __version__}
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(output) as folder:
        frames = score_frames(intake, inputs, features, classifier, policies, folder, log)
        windows = window_scores(frames)
        calls = call_contigs(frames, windows, rule)
        _write_frames(folder, frames)
        _write_windows(folder, windows)
        _write_contigs(folder / "contigs.tsv", frames, calls)
        _write_regions(folder / "viral_regions.bed", frames, windows)
        _write_viral(folder / "viral_contigs.fasta", intake, frames, calls)
        write_products(folder / RECORD, made_from, sorted(folder.iterdir()))
    counts = Counter(call.call for call in calls)
    reasons = Counter(contig.reason for contig in frames.contigs if contig.reason)
    log.info("%s: %s", number(len(calls), "contig"), ", ".join(f"{n:,} {call}" for call, n in counts.items()) or "none")
    for reason, count in reasons.items():
        log.info("%s not scored: %s", number(count, "contig"), reason)
    return counts


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as out:
        out.write("\t".join(columns) + "\n")
        out.writelines("\t".join(map(str, row)) + "\n" for row in rows)


def _write_frames(folder: Path, frames: Frames) -> None:
    words = [("others", "virus")[is_virus] for is_virus in frames.is_virus.tolist()]
    names = [name.decode() for name in FRAMES]
    columns = {
        "id": pa.array(frames.ids, pa.string()),
        "contig": pa.array([frames.contigs[row].id for row in frames.contig], pa.string()),
        "window": pa.array(frames.window),
        "frame": pa.array([names[frame] for frame in frames.frame], pa.string()),
        "start": pa.array(frames.start),
        "end": pa.array(frames.end),
        "strand": pa.array(["+" if frame < 3 else "-" for frame in frames.frame], pa.string()),
        "score_others": pa.array(frames.scores[:, OTHERS]),
        "score_virus": pa.array(frames.scores[:, VIRUS]),
        "prediction": pa.array(words, pa.string()),
    }
    pq.write_table(pa.table(columns), folder / "frames.parquet")
    texts = [[str(np.float32(score)) for score in frames.scores[:, place]] for place in (OTHERS, VIRUS)]
    shown = {name: column.to_pylist() for name, column in columns.items()}
    shown |= {"score_others": texts[OTHERS], "score_virus": texts[VIRUS]}
    _write_table(folder / "frames.tsv", list(shown), zip(*shown.values(), strict=True))
    original = zip(frames.ids, words, *texts, strict=True)
    _write_table(folder / "prediction_results.txt", ["Sequence_ID", "Prediction", "score1", "score2"], original)


def _write_windows(folder: Path, windows: WindowScores) -> None:
    """VirNucPro's table of windows, sorted as text as it does, and broadinstitute's two more columns."""
    rows = [
        (name, is_virus, *map(np.float32, most))
        for name, is_virus, most in zip(windows.ids, windows.is_virus.tolist(), windows.most, strict=True)
    ]
    columns = ["Modified_ID", "Is_Virus", "max_score_0", "max_score_1"]
    in_order = sorted(range(len(rows)), key=windows.ids.__getitem__)
    _write_table(folder / "prediction_results_highestscore.csv", columns, [rows[place] for place in in_order])


def _write_contigs(path: Path, frames: Frames, calls: Sequence[ContigCall]) -> None:
    counted = ["scored_windows", "viral_windows", "surely_viral", "surely_non_viral", "ambiguous"]
    columns = ["contig", "length", "windows", *counted, "score", "call", "reason"]
    rows = (
        (
            *(contig.id, contig.length, contig.windows, call.scored_windows, call.viral_windows, call.surely_viral),
            *(call.surely_not, call.ambiguous, "" if call.score is None else f"{call.score:.6f}", call.call),
            contig.reason,
        )
        for contig, call in zip(frames.contigs, calls, strict=True)
    )
    _write_table(path, columns, rows)


def _write_regions(path: Path, frames: Frames, windows: WindowScores) -> None:
    with path.open("w", encoding="utf-8") as out:
        for row, start, end, most in viral_regions(windows):
            out.write(f"{frames.contigs[row].id}\t{start}\t{end}\tviral\t{round(1000 * most)}\t.\n")


def _write_viral(path: Path, intake: Intake, frames: Frames, calls: Sequence[ContigCall]) -> None:
    viral = {contig.id for contig, call in zip(frames.contigs, calls, strict=True) if call.call == "viral"}
    with path.open("w", encoding="utf-8") as out:
        for contig in intake.second_reading(lambda _: None):
            if contig.id in viral:
                bases = contig.sequence.decode("ascii")
                lines = (bases[start : start + FASTA_LINE] for start in range(0, len(bases), FASTA_LINE))
                out.write(f">{contig.id}\n" + "".join(f"{line}\n" for line in lines))
