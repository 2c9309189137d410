"""Where the time goes: GPU seconds by class of kernel, of the packed forward on Swiss-Prot-like lengths.

python -m benchmarks.profile_esm2 --model 3B
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import engines
from benchmarks.workloads import SIZES, count_for, lengths_of, proteins_of
from virnucpro.cuda.devices import device_name, parse_device
from virnucpro.models.precision import DTYPES, exact_products, resolve_precision

CLASSES = {
    "matrix products": ("gemm", "cutlass", "nvjet", "xmma", "matmul", "addmm", "mkldnn_linear"),
    "attention": ("flash", "fmha", "attention", "_attend"),
    "copies host-device": ("memcpy",),
    "pooling": ("segment_reduce",),
    "fused kernels": ("_norm", "_rotate", "_gelu", "_rows"),
    "norms": ("layer_norm", "layernorm"),
    "elementwise": ("elementwise", "copy", "mul", "add", "gelu", "index", "catarray"),
}


def class_of(kernel: str) -> str:
    """The class of a kernel, by its name; the first that fits."""
    low = kernel.lower()
    order = ("attention", "matrix products", "fused kernels", "copies host-device", "pooling", "norms")
    return next((name for name in (*order, "elementwise") if any(word in low for word in CLASSES[name])), "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="8M")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-fused", action="store_true")
    parser.add_argument("--precision", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--kernels", type=int, default=12, help="name this many kernels too")
    arguments = parser.parse_args()
    device = parse_device(arguments.device)
    cuda = device.type == "cuda"
    architecture = SIZES[arguments.model]
    proteins = proteins_of(lengths_of("swiss", count_for("swiss", architecture, 4e14 if cuda else 1e11)))
    dtype = resolve_precision(arguments.precision, device)
    with exact_products():
        run = engines.ours(architecture, proteins, device, dtype, fused=cuda and not arguments.no_fused)
        run()
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
            run()
            if cuda:
                torch.cuda.synchronize(device)
    seconds: dict[str, float] = defaultdict(float)
    kernels: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        spent = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        seconds[class_of(event.key)] += spent
        kernels[event.key] += spent
    total = sum(seconds.values())
    print(f"{arguments.model} on {device_name(device)}, {dtype}, {total:.3f} s in kernels")
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{100 * spent / total:5.1f} %  {name}")
    for name, spent in sorted(kernels.items(), key=lambda item: -item[1])[: arguments.kernels]:
        print(f"{100 * spent / total:9.1f} %  {name[:110]}")


if __name__ == "__main__":
    main()
