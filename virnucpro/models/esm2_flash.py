"""fair-esm's ESM-2 with its own interface, computed on packed tokens with the fastest attention at hand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from esm.data import Alphabet
from esm.model.esm2 import ESM2
from esm.rotary_embedding import RotaryEmbedding
from torch import Tensor, nn

from virnucpro.attention import PackedAttention
from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.cuda.attention_utils import FLASH, configure_flash_attention, get_attention_implementation
from virnucpro.cuda.devices import device_name, parse_device
from virnucpro.engine.load import build_model, too_large
from virnucpro.models.base import Model
from virnucpro.models.esm2.checkpoint import load_checkpoint
from virnucpro.models.esm2.model import joined, rotary_tables
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.precision import dtype_name, resolve_precision
from virnucpro.weights.locate import locate_checkpoint

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def fuse_projections(model: ESM2) -> None:
    """Make q's, k's and v's parameters of each layer views of one tensor, which the packed forward then shares."""
    for layer in model.layers:
        projections = [getattr(layer.self_attn, name) for name in PROJECTIONS]
        for kind in ("weight", "bias"):
            parameters = [getattr(projection, kind) for projection in projections]
            fused = joined([parameter.detach() for parameter in parameters])
            for parameter, part in zip(parameters, fused.chunk(len(parameters)), strict=True):
                parameter.data = part


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs ``(x[i], x[i + head_dim / 2])`` by their angles, in float32, as fair-esm's formula has it.

    Args:
        x: ``(..., head_dim)`` in any floating dtype.
        cos, sin: float32, of a shape that broadcasts with ``(..., head_dim / 2)``.

    Returns:
        ``x``'s shape, float32.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class WideRotaryEmbedding(RotaryEmbedding):  # type: ignore[misc]
    """fair-esm's rotary embedding with float32 tables, for a model in half precision.

    fair-esm builds its tables in the model's dtype: at length 400 bfloat16 tables disturb the attention
    logits by 19 % of their size.
    """

    inv_freq: Tensor

    def __init__(self, inv_freq: Tensor) -> None:
        super().__init__(2 * len(inv_freq))
        self.register_buffer("inv_freq", inv_freq.float())

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Turn q and k ``(batch x heads, T, head_dim)``; the result has their dtype."""
        cos, sin = rotary_tables(self.inv_freq, torch.arange(k.shape[1], device=k.device))
        cos, sin = cos.transpose(0, 1), sin.transpose(0, 1)
        return rotate(q, cos, sin).to(q.dtype), rotate(k, cos, sin).to(k.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WideRotaryEmbedding:
        """Move with the model, but stay float32 with the stored values when it is cast."""
        exact = self.inv_freq
        super()._apply(fn, recurse)
        self.inv_freq = exact.to(self.inv_freq.device)
        return self


def widen_rotary(model: ESM2) -> None:
    """Give every layer rotary tables that stay float32, with the stored frequencies, however the model is cast."""
    for layer in model.layers:
        rotary = layer.self_attn.rot_emb
        if not isinstance(rotary, WideRotaryEmbedding):
            layer.self_attn.rot_emb = WideRotaryEmbedding(rotary.inv_freq.detach())


Batch = Sequence[tuple[str, str]]

BatchConverter = Callable[[Batch], tuple[list[str], list[str], Tensor]]


def _forget(module: nn.Module, _: object) -> None:
    """Other weights were loaded: what was computed from the old ones goes."""
    assert isinstance(module, ESM2WithFlashAttention)
    module._packed = None


class ESM2WithFlashAttention(nn.Module):
    """A fair-esm ``ESM2`` that runs packed: same parameters, same results, no work on padding.

    For inference: nothing here keeps gradients. The wrapped model's q, k and v weights become views
    of one fused tensor, so wrapping costs no memory and the model itself still works.

    Attributes:
        model: the wrapped fair-esm model.
        config: ``_attn_implementation`` and ``use_flash_attention_2``, as transformers' models have them.
    """

    def __init__(
        self, model: ESM2, logger: logging.Logger | None = None, *, attention: PackedAttention | None = None
    ) -> None:
        """Wrap a model that is on its device and in its dtype.

        Args:
            attention: None chooses for the device and dtype (see :func:`choose_attention`), again after
                the module was moved or cast.
        """
        super().__init__()
        self.model = model
        self.alphabet: Alphabet = model.alphabet
        self.config = SimpleNamespace()
        self._logger = logger or logging.getLogger(__name__)
        self._given = attention
        self._packed: Model | None = None
        if model.layers[0].self_attn.rot_emb.inv_freq.dtype == torch.bfloat16:
            self._logger.warning(
                "the model was cast to bfloat16 before it was wrapped, which rounded its rotary frequencies: "
                "wrap it first and cast it then"
            )
        widen_rotary(model)
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]
        device = model.embed_tokens.weight.device
        configure_flash_attention(self, self._logger, device=device)
        if get_attention_implementation(device) != self.attention_impl:
            self._logger.info("FlashAttention-2 runs on %s, but not in this model", device)

    @property
    def attention_impl(self) -> str:
        """What runs: "flash_attention_2" or "standard_attention"."""
        return self.packed().facts.implementation

    @property
    def attention_kernel(self) -> str:
        """The implementation by its own name, such as "varlen_attn", "efficient_attention" or "sdpa"."""
        return self.packed().facts.attention

    @property
    def num_layers(self) -> int:
        return int(self.model.num_layers)

    @property
    def embed_dim(self) -> int:
        return int(self.model.embed_dim)

    def packed(self) -> Model:
        """The packed forward over the wrapped model's parameters, built again after a move, a cast or a load."""
        if self._packed is None:
            sizes = Architecture(
                int(self.model.num_layers),
                int(self.model.embed_dim),
                int(self.model.attention_heads),
                bool(self.model.token_dropout),
            )
            weight = self.model.embed_tokens.weight
            fuse_projections(self.model)
            self._packed = build_model(
                self.model.state_dict(),
                sizes,
                device=weight.device,
                dtype=weight.dtype,
                kernels="eager" if weight.device.type == "cpu" else "auto",  # a CPU's form would copy q and k
                attention=self._given,
                logger=self._logger,
            )
            self.config.use_flash_attention_2 = self._packed.facts.implementation == FLASH
        return self._packed

    def forward(
        self,
        tokens: Tensor,
        repr_layers: Collection[int] = (),
        need_head_weights: bool = False,
        return_contacts: bool = False,
    ) -> dict[str, Any]:
        """fair-esm's ``ESM2.forward``.

        Args:
            tokens: ``(B, T)`` token ids from fair-esm's batch converter, padded with 1.
            repr_layers: layers from 0 to the last; others are left out, as fair-esm does.
            need_head_weights, return_contacts: attention weights and contacts, which no fused
                kernel gives: computed by fair-esm's own forward.

        Returns:
            ``logits (B, T, 33)`` and ``representations`` ``{layer: (B, T, D)}`` in the model's dtype,
            and ``attentions`` and ``contacts`` when asked for. Places of padding are 0 (fair-esm
            leaves meaningless numbers there). A model without LM head gives no logits.

        Raises:
            UserError: contacts of a model that was loaded without a contact head.
        """
        if need_head_weights or return_contacts:
            if return_contacts and self.model.contact_head.regression.weight.is_meta:
                raise UserError(
                    "contacts need NAME-contact-regression.pt beside the checkpoint NAME.pt, and it was not there"
                )
            with torch.no_grad():
                found: dict[str, Any] = self.model(
                    tokens,
                    repr_layers=repr_layers,
                    need_head_weights=need_head_weights,
                    return_contacts=return_contacts,
                )
            return found
        return self._forward_padded(tokens, repr_layers)

    def predict_contacts(self, tokens: Tensor) -> Tensor:
        """fair-esm's ``ESM2.predict_contacts``."""
        contacts: Tensor = self(tokens, return_contacts=True)["contacts"]
        return contacts

    @torch.no_grad()
    def forward_packed(
        self, tokens: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None, repr_layers: Collection[int] = ()
    ) -> dict[int, Tensor]:
        """Representations of sequences laid end to end, without padding.

        Args:
            tokens: ``(T,)`` token ids; every sequence has its own BOS and EOS.
            cu_seqlens: int32 ``(n + 1,)``: where each sequence begins and, last, T.
            max_seqlen: the longest sequence; it is taken from ``cu_seqlens``, so it need not be given.

        Returns:
            ``{layer: (T, D)}``, float32.
        """
        lengths = cu_seqlens.diff().tolist()
        if sum(lengths) != len(tokens) or (max_seqlen is not None and max_seqlen < max(lengths)):
            raise ValueError("cu_seqlens must end at the count of tokens, and no sequence be longer than max_seqlen")
        return self.packed()(tokens, Segments.from_lengths(lengths, tokens.device), repr_layers)

    @torch.no_grad()
    def _forward_padded(self, tokens: Tensor, repr_layers: Collection[int]) -> dict[str, Any]:
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be (batch, length), not {tuple(tokens.shape)}")
        last = self.num_layers
        layers = {layer for layer in repr_layers if 0 <= layer <= last}
        real = tokens != self.alphabet.padding_idx
        lengths = real.sum(1).tolist()
        kept = [row for row, length in enumerate(lengths) if length]
        dtype = self.model.embed_tokens.weight.dtype
        width = (*tokens.shape, self.embed_dim)
        padded = {layer: torch.zeros(width, dtype=dtype, device=tokens.device) for layer in layers | {last}}
        if kept:
            segments = Segments.from_lengths([lengths[row] for row in kept], tokens.device)
            # A token's position is its column, also behind padding in the middle of a row.
            segments = replace(segments, positions=real.nonzero()[:, 1])
            found = self.packed()(tokens[real], segments, set(padded))
            for layer, hidden in found.items():
                padded[layer][real] = hidden.to(dtype)
        result: dict[str, Any] = {"representations": {layer: padded[layer] for layer in layers}}
        if not self.model.lm_head.bias.is_meta:
            result["logits"] = self.model.lm_head(padded[last])
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ESM2WithFlashAttention:
        """``.to``, ``.half``, ``.cuda``: move the model, and build the packed forward again at the next use."""
        self._packed = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def load_esm2_model(
    model_name: str = "esm2_t48_15B_UR50D",
    device: str | torch.device = "cuda",
    logger: logging.Logger | None = None,
    *,
    precision: str = "auto",
) -> tuple[ESM2WithFlashAttention, BatchConverter]:
    """Load an ESM-2 for inference, with fair-esm's interface.

    Args:
        model_name: a released model, found in torch hub's cache or downloaded; or the path of a
            checkpoint in fair-esm's layout; or "esm2_demo", small random weights. The default is this interface's own:
            the rest of virnucpro takes ``virnucpro.base.settings.default("model")``.
        device: "cuda", "cuda:N" or "cpu".
        logger: receives model, parameters, precision, attention and memory; None is this module's logger.
        precision: "auto" (fp16 where the GPU computes it fast, else fp32), "fp32", "fp16" or "bf16".

    Returns:
        The model in eval mode and without gradients, and fair-esm's batch converter.

    Raises:
        UserError: an unknown model, a missing device, weights that cannot be had or do not fit.
    """
    if precision == "int8":
        raise UserError(
            "precision int8 is for embedding jobs (virnucpro.embed and the workflow): take auto, fp32, fp16 or bf16"
        )
    logger = logger or logging.getLogger(__name__)
    target = parse_device(device)
    dtype = resolve_precision(precision, target)
    checkpoint = locate_checkpoint(model_name, logger.info)
    architecture, state = load_checkpoint(checkpoint)
    with torch.device("meta"):
        model = ESM2(
            architecture.layers, architecture.embed_dim, architecture.heads, token_dropout=architecture.token_dropout
        )
    try:
        moved = {
            name: tensor.to(target, torch.float32 if "inv_freq" in name else dtype) for name, tensor in state.items()
        }
    except torch.OutOfMemoryError:
        raise too_large(model_name, architecture, target, dtype) from None
    moved["lm_head.weight"] = moved["embed_tokens.weight"]
    model.load_state_dict(moved, strict=False, assign=True)
    del state, moved
    wrapped = ESM2WithFlashAttention(model.eval().requires_grad_(False), logger)
    memory = torch.cuda.memory_allocated(target) if target.type == "cuda" else architecture.parameters * dtype.itemsize
    logger.info(
        "%s: %s parameters, %s, %s (%s) on %s, %.2f GiB",
        model_name,
        f"{architecture.parameters:,}",
        dtype_name(dtype),
        wrapped.attention_impl,
        wrapped.attention_kernel,
        device_name(target),
        memory / 2**30,
    )
    return wrapped.eval(), wrapped.alphabet.get_batch_converter()
