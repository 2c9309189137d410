"""VirNucPro's classifier, read from the file that its training leaves without running anything in that file.

The file is a whole module, pickled under ``__main__``: Linear(3328, 512), BatchNorm1d, ReLU, Dropout, Linear(512, 2)
(https://github.com/Li-Jing-1997/VirNucPro, ``train.py``). An inert object stands in for each of its classes, so what
is read are tensors and nothing else; they are checked, and the arithmetic is ours. A state dict is read as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from virnucpro.base.digest import file_sha256
from virnucpro.base.errors import UserError
from virnucpro.checkpoints.tensors import plain_tensor
from virnucpro.checkpoints.torch_file import Inert, load_torch_file, verify_archive

DEMO = "classifier_demo"
"""The name of a random classifier, the same each time; its calls mean nothing."""

WINDOWS = (300, 500)
"""Bases of the windows that VirNucPro's two classifiers were trained on."""

HIDDEN = 512
CLASSES = 2  # others, virus
EPSILON = 1e-5  # torch's default of BatchNorm1d, which train.py leaves as it is
AT_ONCE = 4096


class _Module(Inert):
    """Stands for a ``torch.nn.Module`` of the file: its attributes, and no code."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


_STAND_INS = {
    _Module: (
        "__main__.MLPClassifier",
        *(f"torch.nn.modules.{name}" for name in ("linear.Linear", "batchnorm.BatchNorm1d", "dropout.Dropout")),
        "torch.nn.modules.activation.ReLU",
    )
}


@dataclass(frozen=True)
class Classifier:
    """Tensors, float32, by their names in VirNucPro's state dict; ``sha256`` is the file's, empty for the demo."""

    tensors: Mapping[str, Tensor]
    sha256: str
    window: int

    @property
    def width(self) -> int:
        """Features a frame: 768 of DNABERT-S, then ESM-2's (2560 of 3B)."""
        return self.tensors["hidden_layer.weight"].shape[1]

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """softmax(W2 relu(batch_norm(W1 x + b1)) + b2), (n, 2): others, virus. No calibrated probabilities.

        Args:
            features: (n, :attr:`width`).

        Raises:
            UserError: features of another width.
        """
        if features.shape[1] != self.width:
            raise UserError(
                f"the frames have {features.shape[1]} features and the classifier takes {self.width}: give those of "
                "the models that it was trained with (VirNucPro's: DNABERT-S and esm2_t36_3B_UR50D, layer 36)"
            )
        out = np.empty((len(features), CLASSES), np.float32)
        t = self.tensors
        for start in range(0, len(features), AT_ONCE):
            x = torch.from_numpy(np.ascontiguousarray(features[start : start + AT_ONCE]))
            x = F.linear(x, t["hidden_layer.weight"], t["hidden_layer.bias"])
            norm = (t["bn1.running_mean"], t["bn1.running_var"], t["bn1.weight"], t["bn1.bias"])
            x = F.batch_norm(x, *norm, training=False, eps=EPSILON).relu()
            x = F.linear(x, t["output_layer.weight"], t["output_layer.bias"])
            out[start : start + AT_ONCE] = x.softmax(1).numpy()
        return out


def read_classifier(path: Path, window: int) -> Classifier:
    """A classifier from VirNucPro's ``300_model.pth`` or ``500_model.pth``, or from a state dict of the same names.

    Tensors that were saved on a GPU are read on a machine without one.

    Args:
        window: bases of the windows that the frames are of.

    Raises:
        UserError: no such file, a damaged one, one that is something else or that asks for code to be run; a window
            that VirNucPro has no classifier for, or another one than the file's name says.
    """
    if window not in WINDOWS:
        raise UserError(f"window is {window}; give 300 or 500, which VirNucPro's classifiers were trained on")
    of_name = re.match(r"(\d+)_model", path.name)
    if of_name is not None and int(of_name[1]) != window:
        raise UserError(
            f"{path} is the classifier for windows of {of_name[1]} bases and the window is {window}: give "
            f"{window}_model.pth, or translate, embed and classify with window {of_name[1]}"
        )
    if not path.is_file():
        raise UserError(f"{path}: there is no such classifier; give the path of VirNucPro's {window}_model.pth")
    content = load_torch_file(path, also=_STAND_INS)
    verify_archive(path)
    stored = dict(content) if isinstance(content, Mapping) else _parts(content)
    first = stored.get("hidden_layer.weight")
    if not isinstance(first, Tensor) or plain_tensor(path, "hidden_layer.weight", first).ndim != 2:
        raise UserError(f"{path} is no classifier of VirNucPro: it has no tensor hidden_layer.weight")
    width = Tensor.detach(first).shape[1]
    tensors = {}
    for name, shape in _shapes(width).items():
        if not isinstance(stored.get(name), Tensor):
            raise UserError(f"{path} is no classifier of VirNucPro, or not all of one: it has no tensor {name}")
        tensors[name] = plain_tensor(path, name, stored[name], shape).float()
        if not tensors[name].isfinite().all():
            raise UserError(f"{path}: its tensor {name} holds values that are no numbers; get the file again")
    return Classifier(tensors, file_sha256(path), window)


def demo_classifier(width: int, window: int, seed: int = 0) -> Classifier:
    """Random tensors of a classifier's shapes, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) / (shape[1] ** 0.5 if len(shape) == 2 else 10)
        for name, shape in _shapes(width).items()
    }
    for name in ("bn1.running_var", "bn1.weight"):
        tensors[name] = tensors[name].abs() + 0.5
    return Classifier(tensors, "", window)


def _shapes(width: int) -> dict[str, tuple[int, ...]]:
    return {
        "hidden_layer.weight": (HIDDEN, width),
        "hidden_layer.bias": (HIDDEN,),
        **{f"bn1.{name}": (HIDDEN,) for name in ("weight", "bias", "running_mean", "running_var")},
        "output_layer.weight": (CLASSES, HIDDEN),
        "output_layer.bias": (CLASSES,),
    }


def _parts(module: Any) -> dict[str, Any]:
    """The tensors of a pickled module by their names in its state dict."""
    found: dict[str, Any] = {}
    for part in ("hidden_layer", "bn1", "output_layer"):
        inner = _entries(module, "_modules").get(part)
        for kind in ("_parameters", "_buffers"):
            found |= {f"{part}.{name}": tensor for name, tensor in _entries(inner, kind).items() if type(name) is str}
    return found


def _entries(module: Any, name: str) -> dict[str, Any]:
    value = vars(module).get(name) if isinstance(module, _Module) else None
    return value if isinstance(value, dict) else {}
