"""Other public implementations of ESM-2, each as a function that makes a run, as in :mod:`benchmarks.engines`.

faesm 0.1.1 (PyPI) builds on classes that transformers dropped after 4.53, so it needs transformers < 4.54
and a process of its own: the other engines are measured with a current one. FastPLMs is no package; the
``src`` folder of its repository must be on ``PYTHONPATH``. esm-efficient does not import without flash-attn,
which PyPI has as source only, and has no engine here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engines import Proteins, Run, padded_batches
from virnucpro.models.esm2.sizes import Architecture


def transformers_sdpa(
    architecture: Architecture, proteins: Proteins, device: torch.device, dtype: torch.dtype, *, budget: int = 32768
) -> Run:
    """transformers' ``EsmModel`` with SDPA attention, sorted by length and padded.

    Raises:
        ImportError: transformers is not installed.
    """
    transformers: Any = import_module("transformers")
    config = transformers.EsmConfig(**_sizes(architecture))
    config._attn_implementation = "sdpa"
    with torch.device(device):
        model: nn.Module = transformers.EsmModel(config, add_pooling_layer=False)
    return _padded_run(model.eval().to(dtype), proteins, device, budget)


def faesm_sdpa(
    architecture: Architecture, proteins: Proteins, device: torch.device, dtype: torch.dtype, *, budget: int = 32768
) -> Run:
    """faesm's ``FAEsmModel`` with SDPA attention, as without flash-attn; sorted by length and padded.

    Raises:
        ImportError: faesm is not installed, or transformers is too new for it.
    """
    return _padded_run(faesm_model(architecture, device, dtype), proteins, device, budget)


def fastplms_sdpa(
    architecture: Architecture, proteins: Proteins, device: torch.device, dtype: torch.dtype, *, budget: int = 32768
) -> Run:
    """FastPLMs' ``FastEsmModel`` with SDPA attention, its default; sorted by length and padded.

    Raises:
        ImportError: FastPLMs' sources are not on the path, or do not fit the installed transformers.
    """
    return _padded_run(fastplms_model(architecture, device, dtype), proteins, device, budget)


def faesm_model(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Random weights, named as in transformers' ``EsmModel``.

    Raises:
        ImportError: see :func:`faesm_sdpa`.
    """
    faesm: Any = import_module("faesm.esm")
    transformers: Any = import_module("transformers")
    config = transformers.EsmConfig(**_sizes(architecture))
    config.use_fa = False
    with torch.device(device):
        model: nn.Module = faesm.FAEsmModel(config, add_pooling_layer=False)
    return model.eval().to(dtype)


def fastplms_model(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Random weights, named as in transformers' ``EsmModel`` with ``esm.`` before.

    Raises:
        ImportError: see :func:`fastplms_sdpa`.
    """
    fastplms: Any = import_module("fastplms.models.esm2.modeling_fastesm")
    config = fastplms.FastEsmConfig(**_sizes(architecture), attn_backend="sdpa")
    with torch.device(device):
        model: nn.Module = fastplms.FastEsmModel(config, add_pooling_layer=False)
    return model.eval().to(dtype)


def batch_means(model: nn.Module, tokens: Tensor, lengths: list[int]) -> Tensor:
    """The last layer's mean over the residues of each protein, without BOS and EOS.

    Args:
        tokens: int64 ``[proteins, longest + 2]`` on the model's device, padded with 1.
        lengths: residues of each.

    Returns:
        float32 ``[proteins, embed_dim]``, on the model's device.
    """
    hidden = model(input_ids=tokens, attention_mask=(tokens != 1).long()).last_hidden_state
    place_of = torch.arange(tokens.shape[1], device=tokens.device)
    inside = (place_of > 0) & (place_of <= torch.tensor(lengths, device=tokens.device)[:, None])
    means: Tensor = (hidden * inside[..., None]).sum(1, dtype=torch.float32) / inside.sum(1)[:, None]
    return means


def _padded_run(model: nn.Module, proteins: Proteins, device: torch.device, budget: int) -> Run:
    batches = padded_batches(proteins, budget)

    def run() -> None:
        with torch.inference_mode():
            for tokens, lengths in batches:
                batch_means(model, tokens.to(device), lengths).cpu()

    return run


def _sizes(architecture: Architecture) -> dict[str, Any]:
    """Settings of an ``EsmConfig`` as in the released ESM-2 models."""
    return {
        "vocab_size": 33,
        "hidden_size": architecture.embed_dim,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "intermediate_size": 4 * architecture.embed_dim,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "position_embedding_type": "rotary",
        "token_dropout": architecture.token_dropout,
        "emb_layer_norm_before": False,
        "pad_token_id": 1,
        "mask_token_id": 32,
        "max_position_embeddings": 4100,
        "layer_norm_eps": 1e-5,
    }
