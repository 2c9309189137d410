"""Kernel by kernel on a GPU: attention, the fused kernels, and matrix products with and without bias.

    python -m benchmarks.bench_kernels --model 3B

Times are medians over alternating rounds, so that a GPU which lowers its clock treats all alike. "rate" is
TFLOP/s of useful operations for products and attention, and TB/s read and written for the rest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.bench_esm2 import synchronise
from benchmarks.workloads import KINDS, SIZES, lengths_of
from virnucpro.attention import PackedAttention
from virnucpro.attention.candidates import RunsAttention, TritonAttention, VarlenAttention
from virnucpro.attention.segments import Segments
from virnucpro.cuda.devices import device_name, parse_device
from virnucpro.kernels import pointwise as kernels
from virnucpro.kernels import product8, rows8
from virnucpro.models.precision import exact_products

Entry = tuple[str, Callable[[], object], float]
"""Name, what is timed, and its operations or bytes."""


def attention_entries(heads: int, head_dim: int, tokens: int, kind: str, device: torch.device) -> list[Entry]:
    """The same batch through every attention that runs here."""
    lengths = np.sort(lengths_of(kind, tokens // 20))[::-1] + 2
    lengths = lengths[len(lengths) // 4 :]  # the middle of the distribution; longest first, as the runner packs
    lengths = lengths[: int(np.searchsorted(lengths.cumsum(), tokens, side="right"))]
    segments = Segments.from_lengths(lengths.tolist(), device)
    packed = torch.randn(int(lengths.sum()), 3, heads, head_dim, device=device, dtype=torch.float16)
    packed[:, 0] *= head_dim**-0.5
    q, k, v = packed.unbind(1)
    found: list[PackedAttention] = [TritonAttention()]
    found.append(VarlenAttention() if device.type == "cuda" else RunsAttention())
    operations = float(4 * (lengths.astype(float) ** 2).sum() * heads * head_dim)
    return [(f"attention {kind}: {one.name}", partial(one, q, k, v, segments), operations) for one in found]


def kernel_entries(dim: int, heads: int, tokens: int, device: torch.device) -> list[Entry]:
    """The fused kernels, with the bytes that they read and write."""
    x = torch.randn(tokens, dim, device=device)
    zeros, ones = torch.zeros(dim, device=device), torch.ones(dim, device=device)
    hidden = torch.randn(tokens, 4 * dim, device=device, dtype=torch.float16)
    qkv = torch.randn(tokens, 3 * dim, device=device, dtype=torch.float16)
    angles = torch.rand(tokens, 1, dim // heads // 2, device=device)
    bias = torch.zeros(4 * dim, device=device, dtype=torch.float16)
    added = torch.zeros(tokens, dim, device=device, dtype=torch.float16)
    wide = torch.ones(4 * dim, device=device, dtype=torch.float16)
    split = product8.split_of(4 * dim)
    rotate = partial(kernels.rotate_qk, qkv, bias[: 3 * dim], angles.cos(), angles.sin(), heads, 0.125)
    add_norm = partial(rows8.norm_rows, x, added, zeros, ones, zeros, 1e-5)
    values = tokens * dim
    return [
        ("norm", partial(kernels.norm, x, zeros, ones, zeros, 1e-5, torch.float16), 6.0 * values),
        ("rotary of q and k", rotate, 8.0 * values),
        ("GELU", partial(kernels.gelu, hidden, bias), 16.0 * values),
        ("GELU by torch", partial(F.gelu, hidden), 16.0 * values),
        ("addition and norm to int8", add_norm, 11.0 * values),
        ("GELU to int8", partial(rows8.gelu_rows, hidden, wide, split), 12.0 * values),
    ]


def product_entries(dim: int, tokens: int, device: torch.device) -> list[Entry]:
    """The largest products, with and without bias, and with counts of tokens that are multiples of less and less."""
    found: list[Entry] = []
    for name, outputs in (("qkv", 3 * dim), ("fc1", 4 * dim)):
        weight = torch.randn(outputs, dim, device=device, dtype=torch.float16)
        bias = torch.randn(outputs, device=device, dtype=torch.float16)
        x = torch.randn(tokens, dim, device=device, dtype=torch.float16)
        operations = 2.0 * dim * outputs
        found.append((f"{name}, with bias", partial(F.linear, x, weight, bias), tokens * operations))
        found += [
            (f"{name}, {count} tokens", partial(F.linear, x[:count], weight), count * operations)
            for count in (tokens, tokens - 8, tokens - 5)
        ]
    return found


def measure(entries: list[Entry], device: torch.device, rounds: int) -> None:
    """Print a line for each entry."""
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in entries}
    repeats = 8 if device.type == "cuda" else 1
    for number in range(rounds + 1):
        for name, run, _ in entries:
            synchronise(device)
            started = time.perf_counter()
            for _ in range(repeats):
                run()
            synchronise(device)
            if number:  # the first round compiles and warms up
                seconds[name].append((time.perf_counter() - started) / repeats)
    for name, _, amount in entries:
        typical = float(np.median(seconds[name]))
        print(f"| {name} | {1e6 * typical:,.0f} | {amount / typical / 1e12:.3g} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="3B")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=5)
    kinds = ["orf", "300", "swiss", "1020", "4094", "16382"]
    parser.add_argument(
        "--kinds", nargs="+", default=kinds, help=f"lengths of attention's batches: {KINDS}, or a number"
    )
    arguments = parser.parse_args()
    device, sizes = parse_device(arguments.device), SIZES[arguments.model]
    print(f"{arguments.model}, {arguments.tokens} tokens, {device_name(device)}, torch {torch.__version__}")
    print("| kernel | microseconds | rate |\n|---|---|---|", flush=True)
    with exact_products(), torch.inference_mode():
        for kind in arguments.kinds:
            entries = attention_entries(sizes.heads, sizes.head_dim, arguments.tokens, kind, device)
            measure(entries, device, arguments.rounds)
        measure(kernel_entries(sizes.embed_dim, sizes.heads, arguments.tokens, device), device, arguments.rounds)
        measure(product_entries(sizes.embed_dim, arguments.tokens, device), device, arguments.rounds)


if __name__ == "__main__":
    main()
