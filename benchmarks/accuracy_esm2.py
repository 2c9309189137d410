"""Accuracy of every precision beside fair-esm's own, against fair-esm in float32 on the same device.

    python -m benchmarks.accuracy_esm2 --device cuda --models 8M 35M 150M 650M 3B
    python -m benchmarks.accuracy_esm2 --device cuda --checkpoint pytorch_model.bin --fasta proteins.faa

The weights are random, and random with outlier channels ("stressed"), rounded to float16 as the large
checkpoints are stored. Errors are of the last layer over proteins of 2 (or --shortest) to 1022 residues: the largest
difference of a residue's and of a pooled value, the largest 1 - cosine of a pooled vector, "spread" and "near" (the
pooled values' error as a share of each channel's spread between proteins, and the nearest neighbours that stay the
same: see :class:`virnucpro.doctor.Finding`), and "ratio", the largest quotient, over the proteins, of our pooled error
(Euclidean) and fair-esm's own in that precision. With --checkpoint and --fasta they are of trained weights and real
proteins of up to 1022 of the twenty amino acids.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from virnucpro.cuda.devices import device_name, parse_device
from virnucpro.doctor import Embedded, compare, embed_by_fair_esm, embed_packed, random_proteins
from virnucpro.models.esm2.checkpoint import load_checkpoint
from virnucpro.models.esm2.family import ESM2_FAMILY
from virnucpro.models.esm2.sizes import ESM2_MODELS, Architecture
from virnucpro.models.esm2.synthetic import random_state_dict
from virnucpro.models.precision import DTYPES, exact_products
from virnucpro.sequences.fasta import read_fasta

SIZES = {name.split("_")[2]: architecture for name, architecture in ESM2_MODELS.items()}
AMINO = b"ACDEFGHIKLMNPQRSTVWY"
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
    spread_error: float
    neighbours: float
    ratio: float | None


@dataclass(frozen=True)
class Weights:
    """A model to measure: its size's name, what kind of weights it has, the weights, and the proteins' token ids."""

    size: str
    kind: str
    architecture: Architecture
    state: dict[str, Tensor]
    proteins: Sequence[np.ndarray]


def random_weights(size: str, stressed: bool, device: torch.device, count: int, shortest: int) -> Weights:
    """Those of a released size."""
    state = stored_weights(SIZES[size], stressed, device)
    kind = "stressed" if stressed else "random"
    return Weights(size, kind, SIZES[size], state, random_proteins(count, 1022, shortest))


def trained_weights(checkpoint: Path, fasta: Path) -> Weights:
    """Those of a checkpoint in any form that is read, and the proteins of a file."""
    architecture, state = load_checkpoint(checkpoint)
    sequences = [record.sequence for record in read_fasta(fasta)]
    chosen = [one for one in dict.fromkeys(sequences) if 10 <= len(one) <= 1022 and not one.translate(None, AMINO)]
    proteins = ESM2_FAMILY.tokenizer().encode(chosen, [""] * len(chosen))
    size = f"{architecture.layers} x {architecture.embed_dim}"
    return Weights(size, "trained", architecture, state, proteins)


def measure(weights: Weights, precisions: Sequence[str], device: torch.device) -> list[Row]:
    """The rows of one model with one kind of weights."""
    size, kind, architecture, state, proteins = (getattr(weights, one.name) for one in fields(weights))
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
    errors = one.residue_error, one.pooled_error, one.cosine_distance, one.spread_error, one.neighbours
    return Row(size, kind, name, how, *errors, ratio)


def largest_ratio(ours: Embedded, theirs: Embedded, truth: Embedded) -> float:
    """Over the proteins: our pooled error over fair-esm's own in the same precision."""
    quotients = [
        float((own[1] - exact[1]).norm() / (other[1] - exact[1]).norm().clamp(min=1e-30))
        for own, other, exact in zip(ours, theirs, truth, strict=True)
    ]
    return float(np.max(quotients))


def format_row(one: Row) -> str:
    ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
    errors = f"{one.residue_error:.1e} | {one.pooled_error:.1e} | {one.cosine_distance:.1e} | {one.spread_error:.1e}"
    names = f"{one.model} | {one.weights} | {one.name} | {one.computed_by}"
    return f"| {names} | {errors} | {one.neighbours:.3f} | {ratio} |"


HEADER = (
    "| model | weights | by | attention, layers | residue | pooled | 1 - cosine | spread | near | ratio |\n"
    + "|---" * 10
    + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=["8M", "35M", "150M"])
    parser.add_argument("--checkpoint", type=Path, help="trained weights in place of random ones")
    parser.add_argument("--fasta", type=Path, help="and real proteins")
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=["fp32", "fp16", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--proteins", type=int, default=24)
    parser.add_argument("--shortest", type=int, default=2, help="residues of the shortest protein")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further model after this long")
    parser.add_argument("--output", type=Path, help="write the rows as JSON too")
    arguments = parser.parse_args()
    if (arguments.checkpoint is None) != (arguments.fasta is None):
        parser.error("--checkpoint and --fasta go together")
    device = parse_device(arguments.device)
    print(f"{device_name(device)}, torch {torch.__version__}\n{HEADER}", flush=True)
    kinds: list[Callable[[], Weights]]
    if arguments.checkpoint:
        kinds = [partial(trained_weights, arguments.checkpoint, arguments.fasta)]
    else:
        count, shortest = arguments.proteins, arguments.shortest
        pairs = product(arguments.models, (False, True))
        kinds = [partial(random_weights, size, stressed, device, count, shortest) for size, stressed in pairs]
    rows: list[Row] = []
    started = time.monotonic()
    with exact_products():
        for weights in kinds:
            if time.monotonic() - started > arguments.seconds:
                print("the time is up: not all was measured", flush=True)
                break
            found = measure(weights(), arguments.precisions, device)
            rows += found
            print("\n".join(map(format_row, found)), flush=True)
            gc.collect()
            torch.cuda.empty_cache()
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(one) for one in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
