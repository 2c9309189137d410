"""The packed model on a real GPU against fair-esm in float32 on the same GPU."""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.oracle import as_numbers
from virnucpro.attention.segments import Segments
from virnucpro.doctor import Embedded, embed_by_fair_esm, embed_packed, random_proteins
from virnucpro.engine.load import build_model
from virnucpro.engine.outputs import segment_sums, weigh
from virnucpro.models.esm2.sizes import ESM2_MODELS, Architecture
from virnucpro.models.esm2.synthetic import random_state_dict
from virnucpro.models.precision import DTYPES, INT8, exact_products

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]

LOGGER = logging.getLogger("test")
SMALL = ESM2_MODELS["esm2_t6_8M_UR50D"]
TILED = Architecture(layers=6, embed_dim=512, heads=8)
"""Of a width like the large models': q ends where a tile of the product ends, and rotary is computed within it."""

SIZES = [pytest.param(SMALL, id="8M"), pytest.param(TILED, id="512 wide")]
WEIGHTS = [pytest.param(False, id="random"), pytest.param(True, id="stressed")]


def place() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def weights(outliers: bool, architecture: Architecture = SMALL) -> dict[str, torch.Tensor]:
    """As the large checkpoints store them: rounded to float16, so that every precision starts from the same numbers."""
    state = random_state_dict(architecture, seed=2, outliers=outliers)
    return {name: tensor.half().float().to(place()) for name, tensor in state.items()}


def proteins() -> list[np.ndarray]:
    return random_proteins(12, 1022)


def pooled_errors(found: Embedded, truth: Embedded) -> list[float]:
    return [float((one[1] - other[1]).norm()) for one, other in zip(found, truth, strict=True)]


@pytest.mark.parametrize("outliers", WEIGHTS)
def test_float32_equals_fair_esm(outliers: bool) -> None:
    state = weights(outliers)
    with exact_products():
        truth, _ = embed_by_fair_esm(state, SMALL, proteins(), place(), torch.float32)
        found, _, _ = embed_packed(state, SMALL, proteins(), place(), torch.float32, LOGGER)
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one[0], other[0], rtol=0, atol=2e-5)
        torch.testing.assert_close(one[1], other[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("outliers", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_errs_no_more_than_fair_esms_own(
    dtype: torch.dtype, outliers: bool, sizes: Architecture
) -> None:
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU only emulates bfloat16")
    state = weights(outliers, sizes)
    with exact_products():
        truth, _ = embed_by_fair_esm(state, sizes, proteins(), place(), torch.float32)
        theirs, _ = embed_by_fair_esm(state, sizes, proteins(), place(), dtype)
        ours, _, _ = embed_packed(state, sizes, proteins(), place(), dtype, LOGGER)
    for own, other in zip(pooled_errors(ours, truth), pooled_errors(theirs, truth), strict=True):
        assert own <= other
    if dtype == torch.float16 and not outliers:
        cosines = [torch.cosine_similarity(a[1], b[1], dim=0) for a, b in zip(ours, truth, strict=True)]
        assert min(cosines) > 0.99999


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("outliers", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fused_layers_err_no_more_than_eager_ones(
    dtype: torch.dtype, outliers: bool, sizes: Architecture, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the fused kernels are tried, not promised, before Ampere")
    state = weights(outliers, sizes)
    lengths = [900, 300, 166, 166, 20, 1]
    tokens = torch.randint(4, 24, (sum(lengths),), generator=torch.Generator().manual_seed(0)).to(place())
    segments = Segments.from_lengths(lengths, place())
    layers = [0, 1, 5, 6]
    with exact_products(), torch.inference_mode(), caplog.at_level(logging.INFO):
        truth, eager, fused = (
            build_model(state, sizes, device=place(), dtype=kind, kernels=kernels, logger=LOGGER)
            for kind, kernels in ((torch.float32, "auto"), (dtype, "eager"), (dtype, "auto"))
        )
        ways = [model.facts.layers_run for model in (truth, eager, fused)]
        fused_here = "fused products" if torch.cuda.get_device_capability()[0] == 9 else "fused"
        assert ways == ["eager", "eager", fused_here], caplog.text
        turned = cast(Any, fused).project
        in_product = fused_here == "fused products" and sizes is TILED
        assert turned.func.__name__ == ("rotary_in_product" if in_product else "product_then_rotary")
        exact, plain, fast = (model(tokens, segments, layers) for model in (truth, eager, fused))
    for layer in layers:
        assert (fast[layer] - exact[layer]).norm() <= 1.1 * (plain[layer] - exact[layer]).norm()


@pytest.mark.parametrize("outliers", WEIGHTS)
def test_int8_stays_near_float32(outliers: bool) -> None:
    if torch.cuda.get_device_capability() < INT8:
        pytest.skip("products of integers need compute capability 7.5")
    state = weights(outliers)
    with exact_products():
        truth, _ = embed_by_fair_esm(state, SMALL, proteins(), place(), torch.float32)
        found, _, how = embed_packed(state, SMALL, proteins(), place(), DTYPES["int8"], LOGGER)
    assert how.endswith("fused int8")
    cosines = [float(torch.cosine_similarity(a[1], b[1], dim=0)) for a, b in zip(found, truth, strict=True)]
    lengths = [len(a[0]) for a in truth]
    assert min(cosine for cosine, length in zip(cosines, lengths, strict=True) if length >= 20) > 0.9998


@pytest.mark.parametrize("width", [320, 480, 1280, 2560, 10240, 20480])
def test_rows_in_integers_are_rounded_once(width: int) -> None:
    from virnucpro.kernels import product8, rows8

    split = product8.split_of(width)
    x = torch.randn(37, width, device=place()) * torch.logspace(-3, 3, 37, device=place())[:, None]
    x[:, : split // 2] *= 30
    ones = torch.ones(width, device=place())
    found = rows8.gelu_rows(x, ones, split)
    assert float(((as_numbers(found, split) - F.gelu(x)).abs() / found.scales[:, None]).max()) <= 0.505
    x[5, 3], x[6, width - 1] = float("inf"), float("nan")
    finite = rows8.gelu_rows(x, ones, split).scales.isfinite()
    assert (~finite).nonzero().flatten().tolist() == [5, 6]


@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(70, 960, 320), (1500, 320, 1280), (2100, 2560, 10240)])
def test_products_of_integers_are_exact(tokens: int, outputs: int, inputs: int) -> None:
    """Both ways give the bits of sums in float64, which holds these integers."""
    from virnucpro.kernels import product8, rows8

    split = product8.split_of(inputs)
    generator = torch.Generator().manual_seed(0)
    numbers, weight = (torch.randn(rows, inputs, generator=generator).to(place()) for rows in (tokens, outputs))
    ones, bias = torch.ones(inputs, device=place()), torch.randn(outputs, device=place())
    x, eight = rows8.gelu_rows(numbers, ones, split), product8.weight_rows(weight, split)
    sums = (as_numbers(x, split) / x.scales[:, None]).double().round() @ eight.values[:, split:].double().T
    scaled = sums.float() * x.scales[:, None] * eight.scales
    with_bias = product8.product_in_two(x, eight, bias)
    torch.testing.assert_close(with_bias, (scaled + bias).half(), rtol=2e-3, atol=1e-5)
    assert torch.equal(product8.product_in_two(x, eight), scaled.half())
    if torch.cuda.get_device_capability()[0] == 9:
        assert torch.equal(product8.product_in_one(x, eight), scaled.half())
        assert torch.equal(product8.product_in_one(x, eight, bias), with_bias)


def test_a_protein_alone_in_company_and_in_another_order() -> None:
    state = weights(False)
    model = build_model(state, SMALL, device=place(), dtype=torch.float16, kernels="eager", logger=LOGGER)
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(4, 24, (length,), generator=generator).to(place()) for length in (166, 900, 30, 511)]

    def run(order: list[int]) -> dict[int, torch.Tensor]:
        lengths = [len(sequences[number]) for number in order]
        segments = Segments.from_lengths(lengths, place())
        with torch.inference_mode():
            hidden = model(torch.cat([sequences[number] for number in order]), segments, [6])[6]
        return dict(zip(order, (part.mean(0) for part in torch.split(hidden, lengths)), strict=True))

    together = run([0, 1, 2, 3])
    for order in ([3, 1, 0, 2], [0], [1], [2], [3]):
        for number, mean in run(order).items():
            torch.testing.assert_close(mean, together[number], rtol=0, atol=2e-3)


def test_pooling_by_segments_on_the_gpu() -> None:
    lengths = [1, 1024, 7, 300]
    segments = Segments.from_lengths(lengths, place())
    hidden = torch.randn(sum(lengths), 320, device=place()) * 100
    weights = torch.rand(sum(lengths), device=place())
    found = segment_sums(weigh(hidden, weights), segments).double()
    exact = torch.stack([part.sum(0) for part in torch.split(hidden.double() * weights.double()[:, None], lengths)])
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-2)
