"""What the user knows of proteins: a table whose columns maps can be coloured by."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.errors import UserError

MOST_COLUMNS = 50


def read_metadata(path: Path, sample: str, ids: Sequence[str]) -> dict[str, NDArray[np.float64] | list[str]]:
    """The columns of a table for some proteins of a sample, each in the order of ``ids``.

    Args:
        path: a table with a header, tab-separated, or comma-separated where its name ends in .csv. Its column ``id``
            says which protein a row is of; where it has a column ``sample``, rows of other samples are passed over.

    Returns:
        By the columns' names numbers, NaN where there are none, or texts, empty where there are none. Columns
        without any value here are left out.

    Raises:
        UserError: the table cannot be read, has no column id, or too many.
    """
    places = {name: place for place, name in enumerate(ids)}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="," if path.suffix.lower() == ".csv" else "\t")
            names = [name for name in reader.fieldnames or [] if name and name not in ("id", "sample")]
            if "id" not in (reader.fieldnames or []):
                raise UserError(f"{path}: it has no column id: give its first line the columns' names")
            if len(names) > MOST_COLUMNS:
                raise UserError(f"{path} has {len(names)} columns: leave those in that maps are to be coloured by")
            columns = {name: [""] * len(ids) for name in names}
            for row in reader:
                place = places.get(row["id"] or "")
                if place is None or row.get("sample", sample) not in (sample, "", None):
                    continue
                for name in names:
                    columns[name][place] = (row[name] or "").strip()
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: it cannot be read ({reason}): give a table of UTF-8 text") from None
    return {name: _numbers(values) for name, values in columns.items() if any(values)}


def _numbers(values: list[str]) -> NDArray[np.float64] | list[str]:
    """The values as numbers where all of them are some, else as they are."""
    try:
        numbers = np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return values
    return values if np.isinf(numbers).any() else numbers
