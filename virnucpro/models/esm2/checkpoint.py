"""Read ESM-2 out of a checkpoint in fair-esm's or HuggingFace's layout; everything that is used is checked.

Fair-esm's names of tensors are ours. HuggingFace's are those of transformers' ``convert_esm.py`` and of the files that
versions 4.30 to 5.24 write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from virnucpro.base.errors import UserError
from virnucpro.base.text import short, some
from virnucpro.checkpoints.tensors import StoredTensors, foreign_model, layer_count, read_tensors
from virnucpro.checkpoints.torch_file import plain_tensor
from virnucpro.models.base import Checkpoint
from virnucpro.models.esm2.settings import Settings, another_vocabulary, read_settings
from virnucpro.models.esm2.sizes import (
    ESM2_MODELS,
    LARGEST,
    VOCABULARY,
    Architecture,
    Shapes,
    contact_shapes,
    lm_head_shapes,
)

_MODULES = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn.rot_emb": "attention.self.rotary_embeddings",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}
"""Modules of a layer."""

_OUTSIDE = {
    "embed_tokens.weight": "embeddings.word_embeddings.weight",
    "emb_layer_norm_after.weight": "encoder.emb_layer_norm_after.weight",
    "emb_layer_norm_after.bias": "encoder.emb_layer_norm_after.bias",
}

EMBEDDING, FIRST_NORM = "embed_tokens.weight", "layers.0.self_attn_layer_norm.weight"
"""Two tensors by which a checkpoint is known to be of ESM-2's kind: BERT has no norm before its attention."""

SHARED_INV_FREQ = ("encoder.layer.*.attention.self.rotary_embeddings.inv_freq", "rotary_embeddings.inv_freq")
"""One tensor for all layers, as transformers from 5.8 on writes it: the asterisk is a part of the name."""

_NORM_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def huggingface_name(name: str) -> str:
    """Transformers' name of a tensor, without what ``EsmFor...`` put before it (``esm.``).

    >>> huggingface_name("layers.3.fc1.bias"), huggingface_name("embed_tokens.weight")
    ('encoder.layer.3.intermediate.dense.bias', 'embeddings.word_embeddings.weight')
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, layer, rest = name.split(".", 2)
    module, _, parameter = rest.rpartition(".")
    return f"encoder.layer.{layer}.{_MODULES[module]}.{parameter}"


def older_name(name: str) -> str:
    """Another name that transformers has written for a tensor of a layer norm, or the name itself."""
    end = ".".join(name.split(".")[-2:])
    return name.removesuffix(end) + _NORM_NAMES.get(end, end)


def own_names(architecture: Architecture) -> dict[str, str]:
    """Our names of the tensors that embedding needs, by their names in both layouts."""
    own = list(architecture.shapes())
    return {name: name for name in own} | {huggingface_name(name): name for name in own}


_NOT_NEEDED = ("embeddings.position_ids", "embeddings.position_embeddings.weight", "embed_positions.")
"""Tensors within the embedding part that rotary models carry along and do not use."""

_PARTS = ("encoder.", "embeddings.", "layers.", "embed_", "emb_")
"""How names of the embedding part begin; all others are of heads, which embedding does not need."""


def load_checkpoint(path: Path) -> tuple[Architecture, dict[str, Tensor]]:
    """Read a checkpoint for fair-esm's ``ESM2``, with the heads that it has, memory-mapped.

    The contact head's tensors are added when ``NAME-contact-regression.pt`` is beside the file.

    Returns:
        The sizes, and tensors of the stored dtype named as in ``ESM2.state_dict()``.

    Raises:
        UserError: as :func:`read_checkpoint`.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    state = {**checkpoint.state, **checkpoint.heads}
    beside = path.with_name(f"{path.stem}-contact-regression.pt")
    if beside.is_file():
        contact = read_tensors(beside)
        shapes = contact_shapes(checkpoint.architecture)
        for name, shape in shapes.items():
            state[name] = contact.tensor(next(iter(contact.prefixes(name)), "") + name, shape)
    return checkpoint.architecture, state


def read_checkpoint(path: Path) -> Checkpoint[Architecture]:
    """Read an ESM-2 checkpoint from a file or folder.

    Raises:
        UserError: it is not there, cut short, damaged, unsafe, of another model, or not as its sizes say.
    """
    stored = read_tensors(path)
    found = find_esm2(stored)
    if found is None:
        raise UserError(f"{path} is no ESM-2 checkpoint: it {foreign_model(stored) or 'is of a model not known here'}")
    return found


def find_esm2(stored: StoredTensors) -> Checkpoint[Architecture] | None:
    """ESM-2 among stored tensors, in either layout and under whatever prefix training put before the names.

    Every name, shape and dtype that embedding needs is compared with what the sizes ask for. Sizes are read from the
    tensors; settings that stand beside them have to agree.

    Returns:
        None where nothing there is like ESM-2.

    Raises:
        UserError: it is like ESM-2, but incomplete, damaged, or of another model of its kind.
    """
    for is_huggingface in (False, True):
        layout: Callable[[str], str] = huggingface_name if is_huggingface else str
        prefixes = [
            prefix
            for prefix in stored.prefixes(layout(EMBEDDING))
            if _stored_name(stored, prefix + layout(FIRST_NORM)) is not None
        ]
        if len(prefixes) > 1:
            raise UserError(
                f"{stored.path} holds several models (under {' and '.join(map(short, prefixes[:3]))}): "
                "save the one that you mean alone"
            )
        if prefixes:
            return _Reader(stored, prefixes[0], layout, read_settings(stored, is_huggingface)).read()
    return None


class _Reader:
    def __init__(self, stored: StoredTensors, prefix: str, layout: Callable[[str], str], settings: Settings) -> None:
        self.stored = stored
        self.path = stored.path
        self.prefix = prefix
        self.layout = layout
        self.settings = settings

    def read(self) -> Checkpoint[Architecture]:
        self._refuse_relatives()
        architecture = self._architecture()
        notes: list[str] = []
        state = self._take(architecture, notes)
        heads: dict[str, Tensor] = {}
        for shapes in (lm_head_shapes(architecture), contact_shapes(architecture)):
            heads |= self._head(shapes, state)
        return Checkpoint(architecture, state, heads=heads, notes=tuple(notes))

    def _name(self, own: str) -> str | None:
        """What one of our tensors is called in the files; None where it is not there."""
        return _stored_name(self.stored, self.prefix + self.layout(own))

    def _refuse_relatives(self) -> None:
        """Refuse models of ESM-2's kind that are others, by what they are."""
        inside = [name.removeprefix(self.prefix) for name in self.stored.tensors if name.startswith(self.prefix)]
        if any(".base_layer." in name or ".lora_" in name for name in inside):
            raise UserError(
                f"{self.path} holds a model with an adapter that is not merged into it: call peft's "
                "merge_and_unload() and save that, or give base and adapter by `model:` and `adapter:`"
            )
        if any(name.startswith(("embeddings.layer_norm.", "emb_layer_norm_before.")) for name in inside):
            raise UserError(f"{self.path} is ESM-1b, which has learned positions: only ESM-2 is read")

    def _architecture(self) -> Architecture:
        settings = self.settings
        embedding = plain_tensor(self.path, EMBEDDING, self.stored.tensors[self.prefix + self.layout(EMBEDDING)])
        if embedding.ndim != 2 or embedding.shape[0] != VOCABULARY:
            raise UserError(another_vocabulary(self.path, tuple(embedding.shape)))
        start = self.prefix + self.layout("layers.0.fc1.bias").partition("0")[0]
        found = {"layers": layer_count(self.stored.tensors, start), "embed_dim": embedding.shape[1]}
        for name, value in found.items():
            if not 0 < value <= LARGEST[name]:
                raise UserError(f"{self.path} is no ESM-2: its tensors are of {value} {name}")
            if settings.sizes.get(name, value) != value:
                raise UserError(
                    f"{self.path} is not complete or not ESM-2: its tensors are of {value} {name.replace('_', ' ')}, "
                    f"and its settings ({settings.place}) say {settings.sizes[name]}"
                )
        layers, embed_dim = found["layers"], found["embed_dim"]
        heads = settings.sizes.get("heads") or self._heads(layers, embed_dim)
        try:
            return Architecture(layers, embed_dim, heads, settings.token_dropout)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from None

    def _heads(self, layers: int, embed_dim: int) -> int:
        """The heads, from the length of the rotary frequencies, or else those of a released model of these sizes."""
        name = self._name("layers.0.self_attn.rot_emb.inv_freq") or self._shared_inv_freq()
        if name is not None:
            pairs = plain_tensor(self.path, name, self.stored.tensors[name]).numel()
            if pairs and embed_dim % (2 * pairs) == 0:
                return embed_dim // (2 * pairs)
            raise UserError(f"{self.path} is damaged: {embed_dim} channels are no multiple of its {pairs} frequencies")
        if any("position" in name for name in self.stored.tensors):
            raise UserError(
                f"{self.path} may be ESM-1b or ESM-1v (it has learned positions and no rotary frequencies): only ESM-2 "
                "is read; if it is ESM-2, put its config.json beside it"
            )
        for released in ESM2_MODELS.values():
            if (released.layers, released.embed_dim) == (layers, embed_dim):
                return released.heads
        raise UserError(
            f"{self.path} does not say how many attention heads it has: put a config.json beside it that holds "
            '{"model_type": "esm", "num_attention_heads": N}'
        )

    def _shared_inv_freq(self) -> str | None:
        return next((self.prefix + name for name in SHARED_INV_FREQ if self.prefix + name in self.stored.tensors), None)

    def _take(self, architecture: Architecture, notes: list[str]) -> dict[str, Tensor]:
        """Every tensor of the embedding part, checked; and nothing in that part is left over."""
        shapes = architecture.shapes()
        names = {own: self._name(own) for own in shapes}
        frequencies = [own for own in shapes if own.endswith("inv_freq")]
        computed: dict[str, Tensor] = {}
        if all(names[own] is None for own in frequencies):
            names |= dict.fromkeys(frequencies, self._shared_inv_freq())
        if all(names[own] is None for own in frequencies):
            computed = dict.fromkeys(frequencies, rounded_inv_freq(architecture.head_dim))
            notes.append(
                f"{self.path} holds no rotary frequencies (inv_freq): those of the released models are taken, which "
                "were rounded to float16"
            )
        missing = [self.layout(own) for own, name in names.items() if name is None and own not in computed]
        if missing:
            raise UserError(f"{self.path} is not a complete ESM-2 checkpoint: {some(missing, 'tensor')} missing")
        used = {own: name for own, name in names.items() if name is not None}
        strange = [
            name
            for name in self.stored.tensors.keys() - used.values()
            if name.startswith(self.prefix) and _is_part(name.removeprefix(self.prefix))
        ]
        if strange:
            raise UserError(
                f"{self.path} is not ESM-2: it holds {some(sorted(strange), 'tensor')} that ESM-2 does not have"
            )
        return computed | {
            own: plain_tensor(self.path, name, self.stored.tensors[name], shapes[own]) for own, name in used.items()
        }

    def _head(self, shapes: Shapes, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A head whose tensors are all there, under the model's prefix or what stands before it; else nothing."""
        parts = self.prefix.split(".")[:-1]
        for end in range(len(parts), -1, -1):
            prefix = "".join(f"{part}." for part in parts[:end])
            found = {own: self.stored.tensors.get(prefix + own) for own in shapes}
            if "lm_head.weight" in found and found["lm_head.weight"] is None:
                found["lm_head.weight"] = state[EMBEDDING]  # tied, and so left out by HuggingFace
            if all(tensor is not None for tensor in found.values()):
                return {
                    own: plain_tensor(self.path, own, tensor, shapes[own])
                    for own, tensor in found.items()
                    if tensor is not None
                }
        return {}


def rounded_inv_freq(head_dim: int) -> Tensor:
    """Rotary frequencies as the released checkpoints hold them: the formula's, rounded to float16 in training.

    Returns:
        float32 ``(head_dim / 2,)``.
    """
    # In double, so that no CPU's float32 pow decides a rounding.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    return (1.0 / 10000.0**exponents).to(torch.float16).to(torch.float32)


def _is_part(name: str) -> bool:
    """Whether a tensor is of the embedding part and not one that lies there unused."""
    return name.startswith(_PARTS) and not name.startswith(_NOT_NEEDED) and name not in SHARED_INV_FREQ


def _stored_name(stored: StoredTensors, name: str) -> str | None:
    return next((one for one in (name, older_name(name)) if one in stored.tensors), None)
