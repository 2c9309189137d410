"""VirNucPro's classifier as its training leaves it, read without running anything in that file.

The file is a whole module, pickled under ``__main__``. An inert object stands in for each of its classes, so what is
read are tensors and nothing else; they are checked, and the arithmetic is ours (:mod:`virnucpro.calling.classifier`). A
state dict is read as well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from virnucpro.base.digest import file_sha256
from virnucpro.base.errors import UserError
from virnucpro.base.settings import DEMO_CLASSIFIER
from virnucpro.calling.classifier import Classifier, demo_classifier, shapes, write_classifier
from virnucpro.calling.state import DEMO_WARNING, ClassifierManifest, check_window
from virnucpro.checkpoints.torch_file import Inert, load_torch_file, plain_tensor, verify_archive
from virnucpro.weights.manifest import read_manifest


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


def read_classifier(path: Path, window: int) -> Classifier:
    """A classifier from VirNucPro's ``300_model.pth`` or ``500_model.pth``, or from a state dict of the same names.

    Tensors that were saved on a GPU are read on a machine without one.

    Args:
        window: bases of the windows that the frames are of.

    Raises:
        UserError: no such file, a damaged one, one that is something else or that asks for code to be run; a window
            that VirNucPro has no classifier for, or another one than the file's name says.
    """
    check_window(path, window)
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
    for name, shape in shapes(width).items():
        if not isinstance(stored.get(name), Tensor):
            raise UserError(f"{path} is no classifier of VirNucPro, or not all of one: it has no tensor {name}")
        tensors[name] = plain_tensor(path, name, stored[name], shape).float().numpy()
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{path}: its tensor {name} holds values that are no numbers; get the file again")
    return Classifier(tensors, file_sha256(path))


def prepare_classifier(
    source: Path | None,
    weights: Path,
    nucleotide_weights: Path,
    output: Path,
    window: int,
    *,
    expected_sha256: str | None = None,
    logger: logging.Logger,
) -> ClassifierManifest:
    """Read, check and write the classifier as :func:`virnucpro.calling.classifier.load_classifier` takes it.

    Args:
        source: VirNucPro's file; None for the random classifier.
        weights, nucleotide_weights: of the models whose features it will get.
        expected_sha256: of the source, where ``output`` is named by it.

    Raises:
        UserError: see :func:`read_classifier`; or it takes other features than the two models give; or the file
            changed meanwhile.
    """
    width = read_manifest(weights).embed_dim + read_manifest(nucleotide_weights).embed_dim
    if source is None:
        logger.warning("WARNING: %s", DEMO_WARNING)
        classifier = demo_classifier(width)
    else:
        classifier = read_classifier(source, window)
        classifier.check_width(width)
        if expected_sha256 not in (None, classifier.sha256):
            raise UserError(f"classifier {source} changed while it was read: run the same command again")
    manifest = write_classifier(output, classifier)
    logger.info("%s: %d features, sha256 %s", source or DEMO_CLASSIFIER, width, manifest.sha256)
    return manifest


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
