"""Accuracy of every precision beside fair-esm's own, against fair-esm in float32 on the same device.

    python -m benchmarks.accuracy_esm2 --device cuda --models 8M 35M 150M 650M 3B

The weights are random, and random with outlier channels ("stressed"), rounded to float16 as the large
checkpoints are stored. Errors are of the last layer over proteins of 2 (or --shortest) to 1022 residues: the largest
difference of a residue's and of a pooled value, the largest 1 - cosine of a pooled vector, and "ratio",
the largest quotient, over the proteins, of our pooled error (Euclidean) and fair-esm's own in that precision.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from virnucpro.cuda.devices import device_name, parse_device
from virnucpro.doctor import Embedded, compare, embed_by_fair_esm, embed_packed, random_proteins
from virnucpro.models.esm2.sizes import ESM2_MODELS, Architecture
from virnucpro.models.esm2.synthetic import random_state_dict
from virnucpro.models.precision import DTYPES, exact_products

SIZES = {name.split("_")[2]: architecture for name, architecture in ESM2_MODELS.items()}
LOGGER = logging.getLogger("accuracy")


@dataclass
class Row:
    """One line of the table; ``ratio`` is None for fair-esm itself."""

    model: str
    weights: str
    name: str
    computed_by: str
    residue_error: float
    pooled_error: float
    cosine_distance: float
    ratio: float | None


def measure(
    size: str,
    architecture: Architecture,
    stressed: bool,
    precisions: Sequence[str],
    device: torch.device,
    count: int,
    shortest: int,
) -> list[Row]:
    """The rows of one model with one kind of weights."""
    state = stored_weights(architecture, stressed, device)
    proteins = random_proteins(count, 1022, shortest)
    kind = "stressed" if stressed else "random"
    truth, _ = embed_by_fair_esm(state, architecture, proteins, device, torch.float32)
    rows = []
    for precision in precisions:
        dtype = DTYPES[precision]
        theirs = None
        if dtype in (torch.float16, torch.bfloat16):
            theirs, _ = embed_by_fair_esm(state, architecture, proteins, device, dtype)
            rows.append(row(size, kind, f"fair-esm {precision}", "its own", theirs, truth, None))
        ours, _, how = embed_packed(state, architecture, proteins, device, dtype, LOGGER)
        ratio = None if theirs is None else largest_ratio(ours, theirs, truth)
        rows.append(row(size, kind, f"virnucpro {precision}", how, ours, truth, ratio))
    return rows


def stored_weights(architecture: Architecture, stressed: bool, device: torch.device) -> dict[str, Tensor]:
    """float32 tensors on the device whose values float16 holds exactly."""
    state = random_state_dict(architecture, seed=1, outliers=stressed, device=device)
    return {name: tensor.half().float() for name, tensor in state.items()}


def row(size: str, kind: str, name: str, how: str, found: Embedded, truth: Embedded, ratio: float | None) -> Row:
    one = compare(name, how, found, truth, 0.0)
    return Row(size, kind, name, how, one.residue_error, one.pooled_error, one.cosine_distance, ratio)


def largest_ratio(ours: Embedded, theirs: Embedded, truth: Embedded) -> float:
    """Over the proteins: our pooled error over fair-esm's own in the same precision."""
    quotients = [
        float((own[1] - exact[1]).norm() / (other[1] - exact[1]).norm().clamp(min=1e-30))
        for own, other, exact in zip(ours, theirs, truth, strict=True)
    ]
    return float(np.max(quotients))


def format_row(one: Row) -> str:
    ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
    return (
        f"| {one.model} | {one.weights} | {one.name} | {one.computed_by} | {one.residue_error:.1e} | "
        f"{one.pooled_error:.1e} | {one.cosine_distance:.1e} | {ratio} |"
    )


HEADER = "| model | weights | by | attention, layers | residue | pooled | 1 - cosine | ratio |\n" + "|---" * 8 + "|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=["8M", "35M", "150M"])
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=["fp32", "fp16", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--proteins", type=int, default=24)
    parser.add_argument("--shortest", type=int, default=2, help="residues of the shortest protein")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further model after this long")
    parser.add_argument("--output", type=Path, help="write the rows as JSON too")
    arguments = parser.parse_args()
    device = parse_device(arguments.device)
    print(f"{device_name(device)}, torch {torch.__version__}, {arguments.proteins} proteins\n{HEADER}", flush=True)
    rows: list[Row] = []
    started = time.monotonic()
    with exact_products():
        for size in arguments.models:
            for stressed in (False, True):
                if time.monotonic() - started > arguments.seconds:
                    print(f"{size}: not begun, the time is up", flush=True)
                    continue
                found = measure(
                    size, SIZES[size], stressed, arguments.precisions, device, arguments.proteins, arguments.shortest
                )
                rows += found
                print("\n".join(map(format_row, found)), flush=True)
                gc.collect()
                torch.cuda.empty_cache()
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(one) for one in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
