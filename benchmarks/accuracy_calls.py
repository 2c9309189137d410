"""What half precision does to VirNucPro's scores and calls: the same frames in float32 and in half precision.

    python -m benchmarks.accuracy_calls --device cuda:0 --model 3B --contigs 40

Random weights of full shape in ESM-2 and DNABERT-S, random contigs, and a random classifier whose scores of these
frames spread from 0 to 1, as a trained one's do: as it comes, a random one calls all alike and hides every error.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.bench_job import write_weights
from benchmarks.workloads import SIZES
from virnucpro.base.settings import EmbeddingSettings, LongProteins
from virnucpro.calling.classifier import Classifier, demo_classifier
from virnucpro.engine.embed import Protein, embed_proteins
from virnucpro.models.mosaic_bert.family import write_checkpoint
from virnucpro.models.mosaic_bert.sizes import MOSAIC_MODELS
from virnucpro.sequences.translation import cut_windows, stop_free_frames
from virnucpro.weights.manifest import read_weights
from virnucpro.weights.prepare import prepare_weights

LOGGER = logging.getLogger("benchmark")


def frames_of(contigs: int, length: int, window: int) -> tuple[list[Protein], list[Protein], NDArray[np.int64]]:
    """Frames of random contigs: their proteins, their nucleotides, and the number of each one's window.

    The contigs are of random codons without stops, so that each window has a frame; others are stop-free by chance.
    """
    proteins, bases, windows = [], [], []
    codons = ["".join(codon) for codon in product("ACGT", repeat=3)]
    sense = [codon for codon in codons if codon not in ("TAA", "TAG", "TGA")]
    draw = np.random.default_rng(0)
    for contig in range(contigs):
        text = "".join(draw.choice(sense, length // 3)).encode()
        cuts = cut_windows(np.array([len(text)]), window)
        for number, frame in enumerate(stop_free_frames(text, cuts)):
            name = f"{contig}.{number}"
            proteins.append(Protein(name, frame.protein))
            bases.append(Protein(name, frame.nucleotides))
            windows.append(contig * 10_000 + frame.window)
    return proteins, bases, np.array(windows)


def features(
    folder: Path, frames: tuple[Sequence[Protein], Sequence[Protein]], precision: str, device: str
) -> np.ndarray:
    """DNABERT-S's means and then ESM-2's, float32 ``(frames, D)``."""
    found = []
    for name, sequences in zip(("dnabert", "esm2"), (frames[1], frames[0]), strict=True):
        weights = folder / name / "w.safetensors"
        settings = EmbeddingSettings(precision=precision, long_proteins=LongProteins("full"))
        prepared = read_weights(weights)
        embedded = embed_proteins(sequences, prepared, settings, device=device, logger=LOGGER)
        found.append(embedded.tensors[f"mean.{prepared.manifest.layers}"])
    return np.concatenate(found, axis=1)


def spread(classifier: Classifier, values: NDArray[np.float32]) -> Classifier:
    """The classifier with batch statistics of these features, and outputs that spread as a trained one's."""
    t = {name: tensor.copy() for name, tensor in classifier.tensors.items()}
    hidden = values @ t["hidden_layer.weight"].T + t["hidden_layer.bias"]
    t["bn1.running_mean"], t["bn1.running_var"] = hidden.mean(0), hidden.var(0)
    scored = Classifier(t, "")
    for _ in range(12):
        margin = np.ptp(np.log(scored.scores(values)), axis=1) if len(values) else np.zeros(1)
        if np.median(margin) > 2:
            break
        t["output_layer.weight"] *= np.float32(1.5)
    return scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="8M")
    parser.add_argument("--contigs", type=int, default=20)
    parser.add_argument("--length", type=int, default=5000, help="bases of a contig")
    parser.add_argument("--window", type=int, default=500)
    parser.add_argument("--precisions", nargs="+", default=["fp16", "bf16"])
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    proteins, bases, windows = frames_of(given.contigs, given.length, given.window)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in ("esm2", "dnabert"):
            (folder / each).mkdir()
        write_weights(folder / "esm2", SIZES[given.model], torch.device(given.device))
        checkpoint = write_checkpoint(folder / "dnabert", MOSAIC_MODELS["dnabert_s"])
        prepare_weights(str(checkpoint), folder / "dnabert" / "w.safetensors", log=LOGGER.debug)
        exact = features(folder, (proteins, bases), "fp32", given.device)
        classifier = spread(demo_classifier(exact.shape[1]), exact)
        truth = classifier.scores(exact)
        first = np.unique(windows, return_index=True)[1]
        print(f"{given.model} and DNABERT-S, random weights, on {given.device}")
        print(f"frames {len(proteins):,}, windows {len(first):,}")
        print(f"virus by float32: {np.mean(truth[:, 1] > truth[:, 0]):.0%} of the frames")
        print(f"{'':6} {'largest difference of a score':>30} {'frames called otherwise':>24} {'windows':>10}")
        called = np.maximum.reduceat(truth, first)
        for precision in given.precisions:
            scores = classifier.scores(features(folder, (proteins, bases), precision, given.device))
            difference = np.abs(scores - truth).max()
            frames = np.mean((scores[:, 1] > scores[:, 0]) != (truth[:, 1] > truth[:, 0]))
            best = np.maximum.reduceat(scores, first)
            changed = np.mean((best[:, 1] >= best[:, 0]) != (called[:, 1] >= called[:, 0]))
            print(f"{precision:6} {difference:30.1e} {frames:24.2%} {changed:10.2%}")


if __name__ == "__main__":
    main()
