"""The one door to a model: from prepared weights, or from tensors in memory, to a model on a device."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from virnucpro.attention import PackedAttention, choose_attention
from virnucpro.base.errors import UserError
from virnucpro.cuda.devices import current_device, device_name, parse_device
from virnucpro.models.base import Model, Sizes, Tokenizer
from virnucpro.models.families import family_named
from virnucpro.models.precision import dtype_name, parameter_dtype, resolve_precision, settle_vector_functions
from virnucpro.weights.file import verified_weights
from virnucpro.weights.manifest import Weights, WeightsManifest


def load_model(
    weights: Path,
    *,
    device: torch.device | str,
    precision: str = "auto",
    kernels: str = "auto",
    manifest: WeightsManifest | None = None,
    logger: logging.Logger,
) -> Model:
    """A model from prepared weights, memory-mapped and brought to the device tensor by tensor.

    What takes long happens side by side: the weights are verified while they are copied and the attention is chosen.

    Args:
        precision: see :func:`virnucpro.models.precision.resolve_precision`.
        kernels, logger: see :func:`build_model`.
        manifest: what the caller takes the weights for, if it has read their manifest before.

    Raises:
        UserError: the device is not there or does not compute this precision; the weights are damaged, were
            replaced, or do not fit into the device's memory.
    """
    target = parse_device(device)
    dtype = resolve_precision(precision, target)
    with verified_weights(weights) as (found, state):
        if manifest not in (None, found):
            raise UserError(f"weights {weights} were replaced since the job began: run the same command again")
        return build_model(
            state,
            found.architecture,
            device=target,
            dtype=dtype,
            kernels=kernels,
            logger=logger,
            name=str(weights),
        )


def load_tokenizer(weights: Weights) -> Tokenizer:
    """The tokenizer of prepared weights."""
    return family_named(weights.manifest.architecture.family).tokenizer(weights.tokenizer)


def build_model(
    state: Mapping[str, Tensor],
    sizes: Sizes,
    *,
    device: torch.device,
    dtype: torch.dtype,
    kernels: str = "auto",
    attention: PackedAttention | None = None,
    logger: logging.Logger,
    name: str = "the model",
) -> Model:
    """A model from tensors in memory; those that are on the device in the right dtype are not copied.

    Args:
        state: tensors by the names of the family's prepared weights.
        dtype: of the matrix products (see :data:`virnucpro.models.precision.DTYPES`).
        kernels: "auto" takes the fastest form that runs on the device and agrees with the readable one; "eager"
            takes the readable one.
        attention: None chooses for device, dtype and head size.
        logger: receives what was chosen and why.
        name: of the weights, for the error.

    Raises:
        UserError: a tensor is missing or has another shape, the parameters do not fit into the device's memory,
            or the dtype does not work here.
    """
    settle_vector_functions()
    family, computed_in = family_named(sizes.family), parameter_dtype(dtype)

    def chosen() -> PackedAttention:
        with current_device(device):
            return choose_attention(device, computed_in, sizes.head_dim, logger, slopes=family.slopes(sizes))

    with current_device(device), ThreadPoolExecutor(1, thread_name_prefix="attention") as beside:
        choice = (lambda: attention) if attention is not None else beside.submit(chosen).result
        try:
            model = family.build(state, sizes, choice, device=device, dtype=dtype, kernels=kernels, logger=logger)
        except torch.OutOfMemoryError:
            raise too_large(name, sizes, device, computed_in) from None
    facts = model.facts
    logger.info(
        "%s: %s, attention %s (%s), layers %s",
        device_name(device),
        dtype_name(facts.dtype),
        facts.attention,
        facts.implementation,
        facts.layers_run,
    )
    return model


def too_large(name: str, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> UserError:
    """That a model's parameters in ``dtype`` do not fit."""
    return UserError(
        f"{name} needs about {sizes.parameters * dtype.itemsize / 1e9:.1f} GB in {dtype_name(dtype)}, "
        f"which {device} does not have free: use a GPU with more memory or a smaller model"
    )
