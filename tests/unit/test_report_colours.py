"""The plots' colours as people see them who lack one kind of cone."""

from __future__ import annotations

import numpy as np
import pytest

from virnucpro.report.style import COLOURS, QUIET

# For linear RGB, severity 1.0: Machado, Oliveira and Fernandes 2009, doi:10.1109/TVCG.2009.113.
SEEN = {
    "protanopia": "0.152286 1.052583 -0.204868 0.114503 0.786281 0.099216 -0.003882 -0.048116 1.051998",
    "deuteranopia": "0.367322 0.860646 -0.227968 0.280085 0.672501 0.047413 -0.011820 0.042940 0.968881",
    "tritanopia": "1.255528 -0.076749 -0.178779 -0.078411 0.930809 0.147602 0.004733 0.691367 0.303900",
}


def linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def distance(one: str, other: str, matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix @ (linear(one) - linear(other))))


@pytest.mark.parametrize("kind", SEEN)
def test_the_first_colours_can_be_told_apart(kind: str) -> None:
    matrix = np.array(SEEN[kind].split(), float).reshape(3, 3)
    pairs = [(one, other) for place, one in enumerate(COLOURS[:4]) for other in COLOURS[:place]]
    assert min(distance(*pair, matrix) for pair in pairs) > 0.1


def test_quiet_words_are_legible_on_white() -> None:
    luminance = float(linear(QUIET) @ [0.2126, 0.7152, 0.0722])
    assert 1.05 / (luminance + 0.05) >= 4.5
