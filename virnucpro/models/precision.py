"""Which number format a model runs in, and that its products and functions are computed in no lesser one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from virnucpro.base.errors import UserError
from virnucpro.base.settings import SETTINGS
from virnucpro.cuda import AMPERE
from virnucpro.cuda.devices import capability

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
"""The dtype of the matrix products' inputs; with int8 everything else is float16."""

FAST_HALF = (7, 0)
"""From compute capability 7.0 (Volta) on, tensor cores multiply float16 with float32 sums."""

INT8 = (7, 5)
"""From compute capability 7.5 (Turing) on, tensor cores multiply 8-bit integers."""


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products.

    ESM-2 was trained in float16 and its 3B and 15B checkpoints are stored in it; float16 keeps three
    more bits than bfloat16. So "auto" is float16 on a GPU with tensor cores, float32 elsewhere.

    Raises:
        UserError: an unknown precision, bf16 on a GPU that only emulates it, or int8 where there is none.
    """
    if precision == "auto":
        return torch.float16 if capability(device) >= FAST_HALF else torch.float32
    if precision not in DTYPES:
        raise UserError(f"precision {precision!r} is not known: give {SETTINGS['precision'].allowed}")
    if precision == "bf16" and device.type == "cuda" and capability(device) < AMPERE:
        raise UserError(
            f"{torch.cuda.get_device_name(device)} does not compute bf16: take precision auto, fp16 or fp32"
        )
    if precision == "int8" and capability(device) < INT8:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
        raise UserError(
            f"precision int8 needs a GPU of compute capability 7.5 or newer (Turing), and this is {where}: "
            "take precision auto"
        )
    return DTYPES[precision]


def parameter_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that parameters are loaded in for products in ``dtype``: float16 for int8, else the same."""
    return torch.float16 if dtype == torch.int8 else dtype


def dtype_name(dtype: torch.dtype) -> str:
    """ "float16", "bfloat16", "float32" or "int8"."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def exact_products() -> Iterator[None]:
    """Let CUDA neither round float32 products to TF32 nor sum half-precision products in half precision.

    Both are process-wide switches of torch; they are put back at the end. Some containers turn TF32
    on for every process, which would make "fp32" a name only.
    """
    matmul = torch.backends.cuda.matmul
    names = ("allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before = {name: getattr(matmul, name) for name in names}
    try:
        for name in names:
            setattr(matmul, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)


_ONE_AT_A_TIME = threading.Lock()


def settle_vector_functions() -> None:
    """Have MKL find out in one thread which cos, sin, exp, erf, ... suit this CPU, before several threads call them.

    At the first call of any of these functions MKL 2024.2, which torch's wheels for x86 hold, stores the CPU's type in
    one numbering and an instant later in another. A thread that reads it between the two takes functions of the lowest
    accuracy for its share of that call: cosines were up to 1.5e-4 off (docs/decisions, MKL's vector functions).
    """
    with _ONE_AT_A_TIME:
        torch.ones(1, dtype=torch.float32, device="cpu").cos()
