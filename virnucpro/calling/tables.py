"""The files of a sample's calls: VirNucPro's two tables under their names, and ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro.calling.contigs import ContigCall, WindowScores, viral_regions
from virnucpro.calling.frames import OTHERS, VIRUS, Frames
from virnucpro.sequences.frames import FRAMES
from virnucpro.sequences.intake import Intake

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
