"""Compiled steps: used when they agree with the eager ones, and never otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.test_models_numerics import TINY, build, excess, run_packed, weights
from virnucpro.models import compiled as compiled_module
from virnucpro.models.compiled import compile_steps, worthwhile
from virnucpro.weights.architectures import ESM2_MODELS

LOGGER = logging.getLogger("test")
SEQUENCES = ["MKLVWY" * 9, "ACD", "MKT" * 40]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def pretend_compiler(monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    monkeypatch.setattr(compiled_module.torch, "compile", lambda function, **options: wrap(function))


def test_steps_that_agree_are_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The plumbing of the three steps, without waiting for a compiler."""
    pretend_compiler(monkeypatch, lambda function: function)
    model = build(weights(TINY), TINY)
    expected = run_packed(model, SEQUENCES, [0, 1, 2, 3])
    with caplog.at_level(logging.INFO):
        assert compile_steps(model, LOGGER)
    assert model.steps.name == "compiled"
    assert "layers compiled in" in caplog.text
    assert excess(run_packed(model, SEQUENCES, [0, 1, 2, 3]), expected) <= 1


def test_a_compiler_that_fails_leaves_the_model_eager_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def fail(*args: Any) -> Any:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

        return fail

    pretend_compiler(monkeypatch, failing)
    model = build(weights(TINY), TINY)
    assert not compile_steps(model, LOGGER)
    assert model.steps.name == "eager"
    assert "torch.compile failed (Failed to find C compiler): layers run eager, which is slower" in caplog.text


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_compiler_that_errs_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, factor: float
) -> None:
    def wrong(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            found = function(*args)
            return found * factor if isinstance(found, torch.Tensor) else tuple(one * factor for one in found)

        return run

    pretend_compiler(monkeypatch, wrong)
    model = build(weights(TINY), TINY)
    assert not compile_steps(model, LOGGER)
    assert model.steps.name == "eager"
    assert "compiled layers differ from eager ones" in caplog.text


def test_compiling_pays_for_long_runs_on_a_gpu_alone() -> None:
    model = build(weights(TINY), TINY)
    assert not worthwhile(model, 10**12)
    large = ESM2_MODELS["esm2_t36_3B_UR50D"]
    operations = 24 * large.embed_dim**2 * large.layers
    assert operations * 20_000_000 > compiled_module.WORTHWHILE > operations * 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_real_compiler_agrees_on_this_cpu(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    model = build(weights(TINY), TINY, dtype)
    expected = run_packed(model, SEQUENCES, [1, 3])
    assert compile_steps(model, LOGGER), caplog.text
    found = run_packed(model, SEQUENCES, [1, 3])
    limit = {1: 2e-5, 3: 2e-5} if dtype == torch.float32 else {1: 0.1, 3: 0.1}
    assert excess(found, expected, limit) <= 1
