"""A fused form of a model is used where it runs and agrees with the readable one, which is left elsewhere."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.attention.segments import Segments
from virnucpro.cuda import HOPPER
from virnucpro.cuda.attention_utils import first_sentence
from virnucpro.cuda.devices import capability
from virnucpro.models.base import ModelFacts

TOLERANCE = {torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
"""Largest distance of a layer's values from those of plain operators, as a share of their norm: some roundings."""

TRIED_TOKENS = 70
"""Tokens that forms are compared on: no multiple of any kernel's tile."""


class Form(Protocol):
    """What two forms of one model have, so that they can be compared."""

    attend: PackedAttention

    @property
    def facts(self) -> ModelFacts: ...

    def run(self, x: Tensor, segments: Segments, layers: Collection[int]) -> dict[int, Tensor]: ...


F = TypeVar("F", bound=Form)

Product = Callable[..., Tensor]
"""From ``(T, D)``, and what else there is to it, to ``(T, width)``."""


def belongs_in_product(fast: Product, plain: Product, weight: Tensor, *more: object) -> bool:
    """Whether what follows a product in half precision is computed within it here.

    Decided by the GPU's generation and by the numbers, not by timing: the two ways round differently, and a result
    must not depend on what else a machine was doing. On Hopper it was faster in every model; others were not measured.

    Args:
        fast, plain: within the product, and in a pass behind it.
        weight: ``(width, D)``, for the device, the dtype and D of what both are tried on.
        more: what both take after it.
    """
    if capability(weight.device)[0] != HOPPER:
        return False
    x = torch.randn(TRIED_TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        found, expected = fast(x, *more).float(), plain(x, *more).float()
    except Exception:  # such as a Triton without the tensor memory accelerator's descriptors
        return False
    return bool((found - expected).norm() <= TOLERANCE[weight.dtype] * expected.norm())


def fused_if_equal(model: F, make: Callable[[], F], logger: logging.Logger) -> F:
    """The fused form of a model in half precision, if it agrees with the readable one.

    Where it does not run (no Triton, no C compiler, an old GPU) or the numbers differ, the log says so and the
    given model comes back. So it does in float32: there the products take nearly all of the time.
    """
    dtype = model.facts.dtype
    if dtype not in TOLERANCE:
        return model
    started = time.perf_counter()
    try:
        fused = make()
        distance = distance_between(model, fused)
    except Exception as error:
        logger.warning("the fused kernels do not run here (%s): layers run eager, slower", first_sentence(error))
        return model
    if not distance <= TOLERANCE[dtype]:
        logger.warning("the fused kernels are %.2g from plain operators: layers run eager, slower", distance)
        return model
    logger.info("layers run fused, ready in %.1f s (agree to %.1g)", time.perf_counter() - started, distance)
    return fused


def distance_between(one: Form, other: Form) -> float:
    """How far two forms of a model are apart after its first layer, as a share of the values' norm.

    Returns:
        The largest share over q, k and the representation; not a number if any value is not.
    """
    shares = [float((a - b).norm() / a.norm()) for a, b in zip(first_layer(one), first_layer(other), strict=True)]
    return float(np.max(shares))  # not Python's max, which can pass over what is not a number


class Witness:
    """Stands in for a model's attention: notes q and k, and lets every token attend to itself alone."""

    def __init__(self, attend: PackedAttention) -> None:
        self.name, self.implementation, self.scales = attend.name, attend.implementation, attend.scales
        self.seen: list[Tensor] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, slopes: Tensor | None = None) -> Tensor:
        self.seen += [q.float(), k.float()]
        return v


def first_layer(model: Form) -> list[Tensor]:
    """q, k and the representation after the first layer, float32, of the same tokens for all forms."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TRIED_TOKENS, model.facts.embed_dim, generator=generator).to(model.facts.device)
    witnessed, witness = copy.copy(model), Witness(model.attend)
    witnessed.attend = witness
    with torch.inference_mode(), torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        after = witnessed.run(x, Segments.from_lengths([TRIED_TOKENS], x.device), [1])[1]
    return [*witness.seen, after]
