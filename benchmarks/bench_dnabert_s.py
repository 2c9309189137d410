"""DNABERT-S on one GPU: frames per second of our whole loop, and how far half precision is from float32.

    python -m benchmarks.bench_dnabert_s
    python -m benchmarks.bench_dnabert_s --job path/of/tokenizer.json

Random weights of the released shape and random tokens, which change no one's speed. "share" is of the matmul ceiling:
the rate of ``F.linear`` at the gated product's shape, in the same run. The error is that of the pooled vectors, as a
share of their norm, to float32's. With --job a whole embed job of random frames, files to file: reading, tokens by
the model's own tokenizer and all, and what the GPU lost by waiting for them.
"""

from __future__ import annotations

import argparse
import logging
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.bench_esm2 import best_of
from benchmarks.bench_job import run_job, write_chunk
from virnucpro.base.settings import EmbeddingSettings, LongProteins
from virnucpro.cuda.devices import current_device, device_name, parse_device
from virnucpro.engine.batch import PackedPieces, cut_into_pieces
from virnucpro.engine.load import build_model, load_model
from virnucpro.engine.outputs import Outputs
from virnucpro.engine.run import default_budget, run_model
from virnucpro.models.base import Model
from virnucpro.models.mosaic_bert.family import random_state, write_checkpoint
from virnucpro.models.mosaic_bert.sizes import MOSAIC_MODELS
from virnucpro.models.mosaic_bert.tokenizer import NucleotideTokenizer
from virnucpro.models.precision import exact_products
from virnucpro.weights.prepare import prepare_weights

SIZES = MOSAIC_MODELS["dnabert_s"]
LOGGER = logging.getLogger("bench")
KINDS = {"500 bp": (106, 4), "300 bp": (65, 3), "20 to 600 tokens": None}
"""Mean and deviation of a frame's tokens, as the tokenizer was measured to give them."""


def lengths_of(kind: str, count: int) -> np.ndarray:
    """Tokens of each frame, [CLS] and [SEP] among them."""
    generator = np.random.default_rng(1)
    normal = KINDS[kind]
    if normal is None:
        return generator.integers(20, 601, count)
    return generator.normal(*normal, count).round().astype(int)


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the gated product's shape, 32,768 tokens."""
    x = torch.randn(32768, SIZES.embed_dim, device=device, dtype=dtype)
    weight = torch.randn(2 * SIZES.hidden, SIZES.embed_dim, device=device, dtype=dtype)
    product = partial(F.linear, x, weight)
    seconds = best_of(lambda: [product() for _ in range(100)], device, 3)
    return 100 * 2 * len(x) * weight.numel() / seconds


def useful_operations(lengths: np.ndarray) -> float:
    """Two a weight and token, and attention's scores and weighted sums."""
    d = SIZES.embed_dim
    weights = (4 * d * d + 3 * d * SIZES.hidden) * SIZES.layers
    return float(2 * weights * lengths.sum() + 4 * d * SIZES.layers * (lengths.astype(float) ** 2).sum())


def means(model: Model, frames: list[np.ndarray], budget: int) -> np.ndarray:
    """The last layer's mean of each frame by the engine's loop, float32 ``(frames, D)``."""
    lengths = np.array([len(ids) for ids in frames])
    packed = PackedPieces(frames, cut_into_pieces(lengths, LongProteins("full")), NucleotideTokenizer(""))
    outputs = Outputs(lengths, (SIZES.layers,), SIZES.embed_dim)
    run_model(model, [packed], outputs, names=[""] * len(frames), token_budget=budget, logger=LOGGER)
    outputs.finish()
    return outputs.mean[SIZES.layers]


def frames_of(kind: str, count: int) -> list[np.ndarray]:
    """Random tokens of frames."""
    lengths = lengths_of(kind, count)
    ids = np.random.default_rng(2).integers(5, SIZES.vocabulary, int(lengths.sum())).astype(np.int32)
    return np.split(ids, lengths.cumsum()[:-1])


def job(tokenizer: Path, count: int, device: torch.device) -> None:
    """Print the rates of a job of ``count`` frames of 500 bases, of tokenising, and of the forward alone."""
    bases = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(3).integers(0, 4, (count, 500))]
    sequences = [frame.tobytes() for frame in bases]
    with TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_checkpoint(folder / "model", SIZES, dtype=torch.float16)
        (checkpoint.parent / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        prepare_weights(str(checkpoint), folder / "w.safetensors", log=lambda line: None)
        write_chunk(folder, sequences)
        statistics, whole = run_job(folder, EmbeddingSettings(long_proteins=LongProteins("full")), [str(device)])
        some = sequences[:80_000]
        started = time.perf_counter()
        tokens = NucleotideTokenizer(tokenizer.read_text()).encode(some, [""] * len(some))
        tokenising = len(some) / (time.perf_counter() - started)
        with exact_products(), current_device(device):
            model = load_model(folder / "w.safetensors", device=device, logger=LOGGER)
            budget = default_budget(SIZES.embed_dim, device, 1, model.facts.dtype)
            seconds = best_of(partial(means, model, tokens, budget), device, 2)
    alone = len(some) / seconds
    loop = count / statistics.seconds
    print(
        f"job of {count:,} frames of 500 bases, {statistics.tokens / count:.0f} tokens each, on {device_name(device)}"
    )
    print(f"tokenising alone {tokenising:,.0f} frames/s, the forward alone {alone:,.0f}, the job's loop {loop:,.0f}:")
    print(
        f"{1 - loop / alone:.1%} of the time lost; whole job {whole:.1f} s, loop {statistics.seconds:.1f} s,", end=" "
    )
    print(f"before it {statistics.load_seconds:.1f} s, reading and end ", end="")
    print(f"{whole - statistics.seconds - statistics.load_seconds:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--job", type=Path, metavar="TOKENIZER", help="a whole job of ten times as many frames instead")
    arguments = parser.parse_args()
    device = parse_device(arguments.device)
    if arguments.job:
        job(arguments.job, 10 * arguments.frames, device)
        return
    with exact_products(), current_device(device):
        state = random_state(SIZES, device=device)
        build = partial(build_model, state, SIZES, device=device, logger=LOGGER)
        models: list[tuple[str, Model, int]] = [
            ("fp32", build(dtype=torch.float32, kernels="eager"), 50),
            ("fp16 eager", build(dtype=torch.float16, kernels="eager"), 2),
            ("fp16", build(dtype=torch.float16), 1),
            ("bf16", build(dtype=torch.bfloat16), 1),
        ]
        ceiling = matmul_ceiling(device, torch.float16)
        print(f"{device_name(device)}, torch {torch.__version__}; ceiling {ceiling / 1e12:.0f} TFLOP/s in float16\n")
        print("| frames | form | layers, attention | frames/s | tokens/s | share of ceiling | error |")
        print("|" + " --- |" * 7, flush=True)
        for kind in KINDS:
            few = frames_of(kind, 400)
            exact = means(models[0][1], few, 16384)
            for name, model, less in models:
                found = means(model, few, 16384)
                error = (np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)).max()
                frames = frames_of(kind, arguments.frames // less)
                budget = default_budget(SIZES.embed_dim, device, 1, model.facts.dtype)
                seconds = best_of(partial(means, model, frames, budget), device, 2)
                lengths = np.array([len(ids) for ids in frames])
                share = useful_operations(lengths) / seconds / ceiling
                form = f"{model.facts.layers_run}, {model.facts.attention}"
                rates = f"{len(frames) / seconds:,.0f} | {lengths.sum() / seconds:,.0f}"
                print(f"| {kind} | {name} | {form} | {rates} | {share:.0%} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
