"""VirNucPro's classifier: its arithmetic, and the file that it is prepared as. Needs numpy, and no torch.

Linear(3328, 512), BatchNorm1d, ReLU, Dropout, Linear(512, 2) (https://github.com/Li-Jing-1997/VirNucPro, ``train.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.base.records import RecordError, parse_record, record_text
from virnucpro.base.safetensors_header import HeaderError, TensorEntry, header_bytes, read_header
from virnucpro.calling.state import CLASSIFIER_ENTRY, ClassifierManifest

HIDDEN = 512
CLASSES = 2  # others, virus
EPSILON = 1e-5  # torch's default of BatchNorm1d, which train.py leaves as it is
AT_ONCE = 4096


@dataclass(frozen=True)
class Classifier:
    """Arrays, float32, by their names in VirNucPro's state dict; ``sha256`` is the file's, empty for the random one."""

    tensors: Mapping[str, NDArray[np.float32]]
    sha256: str

    @property
    def width(self) -> int:
        """Features a frame: 768 of DNABERT-S, then ESM-2's (2560 of 3B)."""
        return int(self.tensors["hidden_layer.weight"].shape[1])

    def check_width(self, width: int) -> None:
        """Refuse features of another width than the classifier's.

        Raises:
            UserError: with what to do.
        """
        if width != self.width:
            raise UserError(
                f"the frames have {width} features and the classifier takes {self.width}: give those of "
                "the models that it was trained with (VirNucPro's: DNABERT-S and esm2_t36_3B_UR50D, layer 36)"
            )

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """softmax(W2 relu(batch_norm(W1 x + b1)) + b2), (n, 2): others, virus. No calibrated probabilities.

        Args:
            features: (n, :attr:`width`).

        Raises:
            UserError: features of another width.
        """
        self.check_width(features.shape[1])
        out = np.empty((len(features), CLASSES), np.float32)
        t = self.tensors
        scale = t["bn1.weight"] / np.sqrt(t["bn1.running_var"] + np.float32(EPSILON))
        for start in range(0, len(features), AT_ONCE):
            x = features[start : start + AT_ONCE] @ t["hidden_layer.weight"].T + t["hidden_layer.bias"]
            x = np.maximum((x - t["bn1.running_mean"]) * scale + t["bn1.bias"], 0)
            x = x @ t["output_layer.weight"].T + t["output_layer.bias"]
            x = np.exp(x - x.max(1, keepdims=True))
            out[start : start + AT_ONCE] = x / x.sum(1, keepdims=True)
        return out


def demo_classifier(width: int) -> Classifier:
    """Random tensors of a classifier's shapes, always the same."""
    draw = np.random.default_rng(0)
    tensors = {
        name: (draw.standard_normal(shape) / (shape[1] ** 0.5 if len(shape) == 2 else 10)).astype(np.float32)
        for name, shape in shapes(width).items()
    }
    for name in ("bn1.running_var", "bn1.weight"):
        tensors[name] = np.abs(tensors[name]) + np.float32(0.5)
    return Classifier(tensors, "")


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a classifier of so many features."""
    return {
        "hidden_layer.weight": (HIDDEN, width),
        "hidden_layer.bias": (HIDDEN,),
        **{f"bn1.{name}": (HIDDEN,) for name in ("weight", "bias", "running_mean", "running_var")},
        "output_layer.weight": (CLASSES, HIDDEN),
        "output_layer.bias": (CLASSES,),
    }


def write_classifier(path: Path, classifier: Classifier) -> ClassifierManifest:
    """Write a classifier as a safetensors file that proves itself, whole or not at all; equal ones give equal bytes."""
    entries: dict[str, TensorEntry] = {}
    data = bytearray()
    for name in shapes(classifier.width):
        array = np.ascontiguousarray(classifier.tensors[name], "<f4")
        entries[name] = TensorEntry("F32", array.shape, len(data), len(data) + array.nbytes)
        data += array.tobytes()
    manifest = ClassifierManifest(
        classifier.sha256, hashlib.sha256(data).hexdigest(), classifier.width, not classifier.sha256
    )
    with atomic_path(path) as beside:
        beside.write_bytes(header_bytes(entries, {"format": "pt", CLASSIFIER_ENTRY: record_text(manifest)}) + data)
    return manifest


def load_classifier(path: Path) -> Classifier:
    """A prepared classifier, every byte of it compared with its digest.

    Raises:
        UserError: there is none, or it is damaged.
    """
    way_out = "delete it and run the same command again"
    try:
        with path.open("rb") as file:
            header = read_header(file)
            file.seek(header.data_start)
            data = file.read()
    except OSError as error:
        raise UserError(f"classifier {path} cannot be read ({error.strerror}): run the same command again") from None
    except HeaderError as error:
        raise UserError(f"classifier {path} is damaged ({error}): {way_out}") from None
    try:
        manifest = parse_record(header.metadata.get(CLASSIFIER_ENTRY, ""), ClassifierManifest, path)
    except RecordError as error:
        raise UserError(f"the manifest in classifier {path} {error.reason}: {way_out}") from None
    found = {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()}
    wanted = {name: ("F32", shape) for name, shape in shapes(manifest.width).items()}
    if found != wanted or hashlib.sha256(data).hexdigest() != manifest.sha256:
        raise UserError(f"classifier {path} is damaged (its numbers do not give their sha256): {way_out}")
    tensors = {
        name: np.frombuffer(data, "<f4", (entry.end - entry.begin) // 4, entry.begin).reshape(entry.shape)
        for name, entry in header.tensors.items()
    }
    return Classifier(tensors, manifest.source_sha256)
