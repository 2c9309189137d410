"""Speed beside fair-esm, transformers and the machine's own limits, in one run.

    python -m benchmarks.bench_esm2                                     (this machine: GPU, else CPU)
    python -m benchmarks.bench_esm2 --models 650M 3B --kinds swiss orf --peers fair-esm transformers

Weights are random. "share" is the useful operations on real tokens (24 d^2 + 4 L d a token and layer) per
second over the matmul ceiling, which is the best rate of one linear layer of the model's own shape on
random data, measured in the same run and dtype: first that of a few products, then that of products for as long as a
run of ours takes, because a GPU lowers its clock when it has reached its power limit (an H200: 720 and 640 TFLOP/s).
Tables are Markdown; ``--output`` keeps them as JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from benchmarks import engines, peers
from benchmarks.workloads import KINDS, SIZES, count_for, lengths_of, proteins_of, useful_operations
from virnucpro.cuda.devices import device_name, parse_device
from virnucpro.models.esm2.model import LAYER_NORM_EPS
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.precision import DTYPES, INT8, dtype_name, exact_products, resolve_precision

GPU_OPERATIONS, CPU_OPERATIONS = 1e15, 2e11
"""Operations of one run of ours: about two seconds of an H200, or of two CPU cores."""

SUSTAINED_SECONDS = 2.0


@dataclass
class Measured:
    """One line: shares of the :class:`Ceiling`; ``times_fair_esm`` our or their rate over fair-esm's in float32."""

    model: str
    kind: str
    engine: str
    proteins: int
    tokens: int
    seconds: float
    tokens_per_second: float
    tflops: float
    share: float
    sustained_share: float
    peak_gib: float
    times_fair_esm: float | None = None


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_of(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of some runs after one that warms up."""
    run()
    return min(timed(run, device) for _ in range(repeats))


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run."""
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


class Ceiling(NamedTuple):
    """Operations per second of products: of a few after one another, and over :data:`SUSTAINED_SECONDS`."""

    short: float
    sustained: float


def matmul_ceiling(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> Ceiling:
    """The faster of ``F.linear``'s rates on random data at the model's shapes: tokens x d x 4 d, and back.

    For int8 it is the scaled product that :mod:`virnucpro.models.esm2.int8` calls.
    """
    tokens, dim = (32768, architecture.embed_dim) if device.type == "cuda" else (4096, architecture.embed_dim)
    rates = []
    for rows, columns in ((4 * dim, dim), (dim, 4 * dim)):
        count = 30 if device.type == "cuda" else 2
        x = torch.randn(tokens, columns, device=device)
        weight = torch.randn(rows, columns, device=device)
        if dtype == DTYPES["int8"]:
            from virnucpro.kernels.product8 import weight_rows  # needs Triton
            from virnucpro.kernels.rows8 import norm_rows
            from virnucpro.models.esm2.int8 import choose_product

            zero, one = torch.zeros(columns, device=device), torch.ones(columns, device=device)
            of = weight_rows(weight)
            product: Callable[[], object] = partial(
                choose_product(of), norm_rows(x, None, zero, one, zero, LAYER_NORM_EPS), of
            )
        else:
            product = partial(F.linear, x.to(dtype), weight.to(dtype))

        def run(times: int = 1, product: Callable[[], object] = product, count: int = count) -> None:
            for _ in range(times * count):
                product()

        operations, seconds = count * 2 * tokens * rows * columns, best_of(run, device, 3)
        times = max(1, round(SUSTAINED_SECONDS / seconds))
        rates.append(Ceiling(operations / seconds, times * operations / timed(partial(run, times), device)))
    return Ceiling(max(one.short for one in rates), max(one.sustained for one in rates))


def copy_ceiling(device: torch.device) -> float:
    """Bytes per second that a copy within the device moves, read and written."""
    size = (4 << 30) if device.type == "cuda" else (256 << 20)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / best_of(lambda: target.copy_(source), device, 3)


def measure(
    model: str, kind: str, engine: str, dtype: torch.dtype, device: torch.device, ceiling: Ceiling, scale: float
) -> Measured:
    """Time one engine; ``scale`` makes the work smaller for slower ones."""
    architecture = SIZES[model]
    operations = (GPU_OPERATIONS if device.type == "cuda" else CPU_OPERATIONS) * scale
    lengths = lengths_of(kind, count_for(kind, architecture, operations))
    proteins = proteins_of(lengths)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run = MAKERS[engine](architecture, proteins, device, dtype)
    seconds = best_of(run, device, 2 if engine.startswith("ours") else 1)
    del run
    gc.collect()
    torch.cuda.empty_cache()
    tokens = int((lengths + 2).sum())
    rate = useful_operations(architecture, lengths) / seconds
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    name = f"{engine} {dtype_name(dtype)}"
    shares = rate / ceiling.short, rate / ceiling.sustained
    return Measured(model, kind, name, len(lengths), tokens, seconds, tokens / seconds, rate / 1e12, *shares, peak)


MAKERS: dict[str, Callable[..., engines.Run]] = {
    "ours, eager": lambda *args: engines.ours(*args, fused=False),
    "ours, fused": lambda *args: engines.ours(*args, fused=True),
    "fair-esm, 4096": lambda *args: engines.fair_esm(*args, budget=4096),
    "fair-esm, 16384": lambda *args: engines.fair_esm(*args, budget=16384),
    "transformers sdpa": peers.transformers_sdpa,
    "faesm sdpa": peers.faesm_sdpa,
    "FastPLMs sdpa": peers.fastplms_sdpa,
}


def plan(
    device: torch.device, half: torch.dtype, others: list[str], fused: bool
) -> list[tuple[str, torch.dtype, float]]:
    """Engines in order: name, dtype, and how much of the full work they get."""
    cuda = device.type == "cuda"
    found = []
    if "fair-esm" in others:
        found.append(("fair-esm, 4096", torch.float32, 1 / 16 if cuda else 1 / 3))
        if cuda:
            found.append(("fair-esm, 16384", torch.float16, 1 / 4))
    if "transformers" in others:
        found.append(("transformers sdpa", half, 1 / 2))
        if cuda:
            found.append(("transformers sdpa", torch.bfloat16, 1 / 2))
    found += [(f"{peer} sdpa", half, 1 / 2) for peer in ("faesm", "FastPLMs") if peer in others]
    found.append(("ours, eager", half, 1.0))
    if fused:
        found.append(("ours, fused", half, 1.0))
        if half != torch.bfloat16:
            found.append(("ours, fused", torch.bfloat16, 1.0))
        if torch.cuda.get_device_capability(device) >= INT8:
            found.append(("ours, fused", DTYPES["int8"], 1.0))
    return found


HEADER = (
    "| model | lengths | engine | tokens/s | TFLOP/s | share of ceiling, short, sustained "
    "| times fair-esm fp32 | peak GiB |\n"
    "|---|---|---|---|---|---|---|---|"
)


def format_row(one: Measured) -> str:
    times = "" if one.times_fair_esm is None else f"{one.times_fair_esm:.1f}"
    return (
        f"| {one.model} | {one.kind} | {one.engine} | {one.tokens_per_second:,.0f} | {one.tflops:.3g} | "
        f"{100 * one.share:.0f} %, {100 * one.sustained_share:.0f} % | {times} | {one.peak_gib:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=list(SIZES))
    parser.add_argument("--kinds", nargs="+", default=["orf", "swiss"], help=f"{KINDS}, or a number of residues")
    parser.add_argument("--precision", choices=["auto", *DTYPES], default="auto")
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=["fair-esm", "transformers", "faesm", "FastPLMs"],
        default=["fair-esm", "transformers"],
    )
    parser.add_argument("--no-fused", action="store_true", help="ours eagerly alone")
    parser.add_argument("--seconds", type=float, default=1e9, help="start nothing more after this long")
    parser.add_argument("--output", type=Path, help="keep the results as JSON")
    arguments = parser.parse_args()
    device = parse_device(arguments.device)
    half = resolve_precision(arguments.precision, device)
    models = arguments.models or (["650M", "3B"] if device.type == "cuda" else ["8M"])
    fused = device.type == "cuda" and not arguments.no_fused
    copied = copy_ceiling(device)
    name = device_name(device)
    print(f"{date.today()}, {name}, torch {torch.__version__}, copy {copied / 1e9:,.0f} GB/s", flush=True)
    started = time.monotonic()
    rows: list[Measured] = []
    ceilings: dict[str, Ceiling] = {}
    with exact_products():
        for model in models:
            wanted = dict.fromkeys(dtype for _, dtype, _ in plan(device, half, arguments.peers, fused))
            ceiling = {dtype: matmul_ceiling(SIZES[model], device, dtype) for dtype in wanted}
            ceilings |= {f"{model} {dtype_name(dtype)}": rate for dtype, rate in ceiling.items()}
            listed = ", ".join(
                f"{dtype_name(dtype)} {rate.short / 1e12:.3g}, {rate.sustained / 1e12:.3g}"
                for dtype, rate in ceiling.items()
            )
            print(f"\n{model}: matmul ceiling in TFLOP/s, short and sustained: {listed}\n{HEADER}", flush=True)
            for kind in arguments.kinds:
                slow = None
                for engine, dtype, scale in plan(device, half, arguments.peers, fused):
                    if time.monotonic() - started > arguments.seconds:
                        print(f"{model} {kind} {engine}: not begun, the time is up", flush=True)
                        continue
                    try:
                        one = measure(model, kind, engine, dtype, device, ceiling[dtype], scale)
                    except (ImportError, RuntimeError) as error:
                        print(f"{model} {kind} {engine}: {str(error).splitlines()[0]}", flush=True)
                        continue
                    slow = one.tokens_per_second if engine == "fair-esm, 4096" else slow
                    one.times_fair_esm = one.tokens_per_second / slow if slow else None
                    rows.append(one)
                    print(format_row(one), flush=True)
    if arguments.output:
        facts: dict[str, object] = {"date": str(date.today()), "device": name, "torch": torch.__version__}
        facts |= {"python": platform.python_version(), "copy_bytes_per_second": copied, "matmul_ceilings": ceilings}
        arguments.output.write_text(json.dumps(facts | {"rows": [asdict(one) for one in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
