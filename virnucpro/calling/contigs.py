"""From scores of frames to calls of windows and contigs, and a folder of them: whole, or as it was before.

VirNucPro's two tables stand there under their names, and ours.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro import __version__
from virnucpro.base.atomic import atomic_directory
from virnucpro.base.digest import Products, file_sha256, files_of, recorded
from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record, write_record
from virnucpro.base.settings import InputPolicies
from virnucpro.base.text import number
from virnucpro.calling.classifier import Classifier
from virnucpro.calling.frames import JOINT, OTHERS, VIRUS, Frames, placed_frames, score_frames
from virnucpro.calling.state import DEMO_WARNING, RECORD, CallFiles, CallRule, CallsRecord, calls_origin
from virnucpro.sequences.intake import Intake
from virnucpro.sequences.translation import CONTIGS, FRAMES
from virnucpro.storage.state import translation_origin

if TYPE_CHECKING:
    from virnucpro.calling.features import Features  # reads VirNucPro's files with torch, which scores do without


@dataclass(frozen=True)
class WindowScores:
    """Windows that have a stop-free frame, m of them, in input order.

    Attributes:
        ids: ``{contig}_chunk_{window}``.
        contig: (m,) int64, row of the contig.
        window: (m,) int64, from 1.
        start, end: (m,) int64, from 0, half open.
        most: (m, 2) float32, the largest score of a frame for others and for virus.
    """

    ids: list[str]
    contig: NDArray[np.int64]
    window: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    most: NDArray[np.float32]

    @property
    def is_virus(self) -> NDArray[np.bool_]:
        """VirNucPro's answer for a window; where both are equal it is a virus."""
        return self.most[:, VIRUS] >= self.most[:, OTHERS]


@dataclass(frozen=True)
class ContigCall:
    """What is said of one contig; ``score`` is the weighted difference, from -1 to 1, None where nothing was scored."""

    scored_windows: int
    viral_windows: int
    surely_viral: int
    surely_not: int
    ambiguous: int
    score: float | None
    call: str


def window_scores(frames: Frames) -> WindowScores:
    """The largest score of each class among a window's frames, which stand together in input order."""
    begins = (np.diff(frames.contig, prepend=-1) != 0) | (np.diff(frames.window, prepend=-1) != 0)
    first = np.flatnonzero(begins)
    most = np.maximum.reduceat(frames.scores, first) if first.size else np.empty((0, 2), np.float32)
    ids = [f"{frames.contigs[frames.contig[row]].id}{JOINT}{frames.window[row]}" for row in first]
    start, end = frames.window_start[first], frames.window_end[first]
    return WindowScores(ids, frames.contig[first], frames.window[first], start, end, most)


def contig_calls(frames: Frames, windows: WindowScores, rule: CallRule) -> list[ContigCall]:
    """A call for every contig, scored or not, in input order.

    For windows with largest scores s0 (others) and s1 (virus), d = s1 - s0, a contig's score is
    sum(d sqrt|d|) / sum(sqrt|d|), and 0 where every d is 0.
    """
    s0, s1 = windows.most[:, OTHERS].astype(float), windows.most[:, VIRUS].astype(float)
    delta = s1 - s0
    weight = np.sqrt(np.abs(delta))
    columns = (
        np.ones(len(delta)),
        windows.is_virus,
        (s1 > rule.sure_over) & (s0 < rule.sure_under),
        (s0 > rule.sure_over) & (s1 < rule.sure_under),
        (s0 > rule.ambiguous_over) & (s1 > rule.ambiguous_over),
        delta * weight,
        weight,
    )
    sums = np.stack([np.bincount(windows.contig, column, len(frames.contigs)) for column in columns], axis=1)
    calls = []
    for *counts, total, weights in sums.tolist():
        scored, viral, surely_viral, surely_not, ambiguous = map(int, counts)
        score = None if not scored else total / weights if weights else 0.0
        calls.append(ContigCall(scored, viral, surely_viral, surely_not, ambiguous, score, _word(score, rule)))
    return calls


def _word(score: float | None, rule: CallRule) -> str:
    if score is None:
        return "unscored"
    return "viral" if score > rule.viral_over else "non-viral" if score < rule.non_viral_under else "ambiguous"


def viral_regions(windows: WindowScores) -> Iterator[tuple[int, int, int, float]]:
    """Runs of neighbouring windows that VirNucPro calls viral: contig's row, start, end, largest virus score."""
    rows = np.flatnonzero(windows.is_virus)
    follows = (np.diff(windows.contig[rows], prepend=-1) == 0) & (np.diff(windows.window[rows], prepend=-1) == 1)
    for run in np.split(rows, np.flatnonzero(~follows)):
        if run.size:
            first, last = run[0], run[-1]
            most = float(windows.most[run, VIRUS].max())
            yield int(windows.contig[first]), int(windows.start[first]), int(windows.end[last]), most


FASTA_LINE = 70
AT_ONCE = 1 << 16
"""Frames in hand."""

FRAMES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("contig", pa.string()),
        ("window", pa.int64()),
        ("frame", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("strand", pa.string()),
        ("score_others", pa.float32()),
        ("score_virus", pa.float32()),
        ("prediction", pa.string()),
    ]
)


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as out:
        out.write("\t".join(columns) + "\n")
        out.writelines(map(_line, rows))


def write_frames(folder: Path, frames: Frames) -> None:
    """``frames.parquet``, ``frames.tsv`` and VirNucPro's ``prediction_results.txt``, so many rows at a time."""
    with (
        pq.ParquetWriter(folder / "frames.parquet", FRAMES_SCHEMA) as parquet,
        (folder / "frames.tsv").open("w", encoding="utf-8", newline="") as own,
        (folder / "prediction_results.txt").open("w", encoding="utf-8", newline="") as original,
    ):
        own.write("\t".join(FRAMES_SCHEMA.names) + "\n")
        original.write("Sequence_ID\tPrediction\tscore1\tscore2\n")
        for start in range(0, len(frames.ids), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            frame = frames.frame[part].tolist()
            words = [("others", "virus")[is_virus] for is_virus in frames.is_virus[part].tolist()]
            others, virus = frames.scores[part, OTHERS], frames.scores[part, VIRUS]
            columns = [
                frames.ids[part],
                [frames.contigs[row].id for row in frames.contig[part].tolist()],
                frames.window[part],
                [FRAMES[number].decode() for number in frame],
                frames.start[part],
                frames.end[part],
                ["+" if number < 3 else "-" for number in frame],
                others,
                virus,
                words,
            ]
            parquet.write_batch(pa.record_batch(list(map(pa.array, columns)), schema=FRAMES_SCHEMA))
            # As text, a float32 has the digits that tell it from its neighbours.
            texts = [list(map(str, scores)) for scores in (others, virus)]
            own.writelines(map(_line, zip(*columns[:7], *texts, words, strict=True)))
            original.writelines(map(_line, zip(frames.ids[part], words, *texts, strict=True)))


def _line(row: Iterable[object]) -> str:
    return "\t".join(map(str, row)) + "\n"


def write_windows(folder: Path, windows: WindowScores) -> None:
    """VirNucPro's table of windows, sorted as text as it does, and broadinstitute's two more columns."""
    rows = [
        (name, is_virus, *map(np.float32, most))
        for name, is_virus, most in zip(windows.ids, windows.is_virus.tolist(), windows.most, strict=True)
    ]
    columns = ["Modified_ID", "Is_Virus", "max_score_0", "max_score_1"]
    in_order = sorted(range(len(rows)), key=windows.ids.__getitem__)
    _write_table(folder / "prediction_results_highestscore.csv", columns, [rows[place] for place in in_order])


def write_contigs(path: Path, frames: Frames, calls: Sequence[ContigCall]) -> None:
    """A row for every contig that came in."""
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


def write_regions(path: Path, frames: Frames, windows: WindowScores) -> None:
    """Runs of viral windows as BED."""
    with path.open("w", encoding="utf-8") as out:
        for row, start, end, most in viral_regions(windows):
            out.write(f"{frames.contigs[row].id}\t{start}\t{end}\tviral\t{round(1000 * most)}\t.\n")


def write_viral(path: Path, intake: Intake, frames: Frames, calls: Sequence[ContigCall]) -> None:
    """The contigs that are called viral, as FASTA."""
    viral = {contig.id for contig, call in zip(frames.contigs, calls, strict=True) if call.call == "viral"}
    with path.open("w", encoding="utf-8") as out:
        for contig in intake.second_reading(lambda _: None):
            if contig.id in viral:
                bases = contig.sequence.decode("ascii")
                lines = (bases[start : start + FASTA_LINE] for start in range(0, len(bases), FASTA_LINE))
                out.write(f">{contig.id}\n" + "".join(f"{line}\n" for line in lines))


def classify(
    inputs: Sequence[Path],
    features: Features,
    classifier: Classifier,
    output: Path,
    *,
    window: int,
    rule: CallRule = CallRule(),
    policies: InputPolicies = InputPolicies(),
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
    files: CallFiles,
    *,
    window: int,
    rule: CallRule,
    policies: InputPolicies,
    logger: logging.Logger,
) -> Counter[str]:
    """As :func:`classify`, from the scores that :func:`virnucpro.calling.frames.classify_frames` has written.

    Args:
        files: the sample's, with the record of the contigs' translation and the scores.

    Raises:
        UserError: the contigs are not those that were translated, or the scores not those that were written.
    """
    intake = _read_once(inputs, policies)
    scores = files.scores
    made_from = read_record(files.translation, Products).made_from
    if made_from != translation_origin(intake.digests, window, policies):
        raise UserError(
            f"{', '.join(map(str, inputs))}: changed since the frames were translated; run the same command again"
        )
    proof = recorded(files.scores_record, scores)
    if file_sha256(scores) != proof.sha256:
        raise UserError(f"{scores} was changed or damaged since it was written: run the same command again")
    origin = read_record(files.scores_record, Products).made_from
    is_random = origin["classifier"] == "random"
    made_from = calls_origin(intake.digests, proof.sha256, window, rule, policies)
    made_from |= {name: value for name, value in origin.items() if name != "splits"}

    def score(_: Path) -> Frames:
        ids, both = _read_scores(scores)
        return placed_frames(intake, ids, both, window)

    return _write_calls(intake, score, files.calls, rule, made_from, DEMO_WARNING if is_random else "", logger)


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
