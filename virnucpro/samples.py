"""The samples of a run: names and FASTA files, out of any of the forms in which they may be given."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from virnucpro.base.errors import UserError
from virnucpro.base.paths import matching, without_patterns
from virnucpro.base.text import brief, short

COMPRESSION_ENDINGS = (".gz", ".bgz", ".xz", ".bz2", ".zst")
FASTA_ENDINGS = (".fasta", ".fas", ".fa", ".faa", ".fna", ".ffn", ".fsa", ".pep", ".mpfa", ".txt")
TABLE_ENDINGS = (".tsv", ".csv")
SPREADSHEET_ENDINGS = (".xlsx", ".xls", ".ods")
SEPARATORS = ("\t", ",", ";")

OURS = (
    *("gpu.json", "logs", "benchmarks", "plots", "chunks", "tensors", "nucleotides", "chunks.tsv"),
    *("summary.tsv", "summary.txt", "summary.html", "summary.json", "map.html", "map.json"),
)
"""Names in the results folder that are not samples'."""

LONGEST_SAMPLE = 200
"""Bytes of a sample's name: names of files and of logs are made of it and more."""

WHAT = "setting 'samples'"


def find_samples(samples: Any, folder: Path | None = None) -> dict[str, tuple[Path, ...]]:
    """Samples by name, each with its FASTA files.

    Args:
        samples: as the setting ``samples`` may be given.
        folder: of the configuration file that names them; relative paths are looked for in the working folder, then
            in the folder of the file (configuration or table) that they stand in.

    Raises:
        UserError: for a missing file, an impossible name, or two files of one sample name.
    """
    found: dict[str, list[Path]] = {}
    for name, file in _named_files(samples, folder):
        found.setdefault(_possible(name), []).append(without_patterns(file, WHAT))
    return {name: tuple(files) for name, files in found.items()}


def sample_name(file: str | Path) -> str:
    """The file's name without its endings: ``reads/a.b.faa.gz`` is ``a.b``."""
    name = Path(file).name
    for endings in (COMPRESSION_ENDINGS, FASTA_ENDINGS):
        for ending in endings:
            if name.lower().endswith(ending) and len(name) > len(ending):
                name = name[: -len(ending)]
                break
    return name


def _named_files(samples: Any, folder: Path | None) -> Iterator[tuple[str, Path]]:
    if isinstance(samples, Mapping) and samples:
        for name, texts in samples.items():
            if not isinstance(name, str):
                raise UserError(
                    f"sample name {short(name)} is not text: YAML may have changed it on the way (007 and 7 are one "
                    "number to it, no is false): put it in quotes"
                )
            for text in _texts(texts, folder):
                yield from ((name, file) for file in _fasta_files(text, folder))
        return
    texts = _texts(samples, folder)
    if len(texts) == 1 and texts[0].lower().endswith(TABLE_ENDINGS):
        for table in matching(texts[0], WHAT, folder):
            for line, name, text in _rows(table):
                _possible(name, f" (samples table {table}, line {line})")
                yield from ((name, file) for file in _fasta_files(text, table.parent, f"{table}, line {line}"))
        return
    seen: dict[str, Path] = {}
    for text in texts:
        for file in _fasta_files(text, folder):
            name = sample_name(file)
            if name in seen:
                raise UserError(
                    f"{seen[name]} and {file} would both be sample {name!r}: give them names, "
                    "as a mapping of name to file or in a samples table"
                )
            seen[name] = file
            yield name, file


def _possible(name: str, where: str = "") -> str:
    """The name, if it can be that of a folder in the results."""
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith(".") or len(name.encode()) > LONGEST_SAMPLE:
        raise UserError(
            f"sample name {short(name)}{where} can't be a folder's name: use letters, digits, '.', '_', '+' and '-', "
            f"at most {LONGEST_SAMPLE} bytes (name it in a samples table)"
        )
    if name.lower() in OURS:
        raise UserError(
            f"sample name {name!r}{where} is what a file or folder of ours in the results folder is called: "
            "give it another name, as a mapping of name to file or in a samples table"
        )
    return name


def _texts(given: Any, folder: Path | None) -> list[str]:
    """Paths and patterns, as the text, the comma-separated text or the list gives them."""
    if isinstance(given, str):
        whole = given.strip()
        parts = [part.strip() for part in whole.split(",") if part.strip()]
        if len(parts) > 1 and any((place / whole).is_file() for place in (Path(), folder or Path())):
            return [whole]  # a file whose name has a comma in it
    else:
        parts = list(given) if isinstance(given, Sequence) else [given]
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise UserError(
            f"{WHAT} can't be {short(given)}: it must be a FASTA file, a folder, a pattern, a list of these, a mapping "
            "of sample name to file or files, or a table (.tsv, .csv); a name of digits needs quotes"
        )
    return parts


def _fasta_files(text: str, folder: Path | None, what: str = WHAT) -> list[Path]:
    """The files that a path, a pattern or a folder stands for."""
    if text.lower().endswith(SPREADSHEET_ENDINGS):
        raise UserError(f"{what}: {brief(text)} is a spreadsheet: save it as text (.tsv or .csv)")
    files: list[Path] = []
    for path in matching(text, what, folder):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if _looks_like_fasta(file))
            if not inside:
                raise UserError(
                    f"{what}: {brief(text)} is a folder without FASTA files (*.faa, *.fasta, *.fa.gz and so on)"
                )
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{what}: {brief(text)} is neither a file nor a folder: write it to a file first")
    return files


def _looks_like_fasta(file: Path) -> bool:
    name = file.name.lower()
    for ending in COMPRESSION_ENDINGS:
        name = name.removesuffix(ending)
    # Folders hold notes in .txt too.
    endings = tuple(ending for ending in FASTA_ENDINGS if ending != ".txt")
    return name.endswith(endings) and not name.startswith(".") and file.is_file()


def _rows(table: Path) -> Iterator[tuple[int, str, str]]:
    """Line, sample and path of each row of a samples table."""
    lines = [
        (number, line)
        for number, line in enumerate(_read_text(table).splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    header = lines[0][1] if lines else ""
    separator = max(SEPARATORS, key=header.count)
    columns = [cell.strip().lower() for cell in next(csv.reader([header], delimiter=separator), [])]
    missing = [name for name in ("sample", "path") if columns.count(name) != 1]
    if missing:
        raise UserError(
            f"samples table {table} lacks the column {' and '.join(missing)} in its first line: name the columns "
            "sample and path once each, separated by tabs, commas or semicolons"
        )
    empty = True
    for number, line in lines[1:]:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator))]
        if len(cells) > len(columns) and any(cells[len(columns) :]):
            raise UserError(
                f"samples table {table}, line {number}: there are {len(cells)} cells for {len(columns)} columns; "
                "put a path with the separator in it in quotes"
            )
        row = dict(zip(columns, cells, strict=False))
        name, path = row.get("sample", ""), row.get("path", "")
        if not name and not path:
            continue
        if not name or not path:
            raise UserError(f"samples table {table}, line {number}: sample and path must both be given")
        empty = False
        yield number, name, path
    if empty:
        raise UserError(f"samples table {table} has no rows: add a line with a sample and a path")


def _read_text(table: Path) -> str:
    try:
        data = table.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise UserError(f"samples table {table} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"samples table {table}, line {line}: this is not UTF-8 text: save the table as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"samples table {table} has zero bytes in it and is not text: save the table as UTF-8")
    return text
