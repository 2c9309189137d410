"""Checkpoints and adapters as HuggingFace's own libraries write them, compared with those libraries in every layer.

transformers and peft are test dependencies (the extra ``oracle``). A real one, an ESM-2 8M that others have fine-tuned,
is compared where ``VIRNUCPRO_REAL_MODEL`` names its folder (CONTRIBUTING.md says how to get it).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.oracle import random_protein
from tests.unit.huggingface_cases import state_of, write_folder
from virnucpro.attention.segments import Segments
from virnucpro.engine.load import load_model
from virnucpro.models.esm2.alphabet import ESM2Tokenizer
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.reference import ModelRef
from virnucpro.weights.prepare import prepare_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install -e '.[oracle]')")

SIZES = Architecture(layers=3, embed_dim=64, heads=4)
LENGTHS = (1, 2, 17, 65, 301)
EAGER = {"attn_implementation": "eager"}

logging.getLogger("transformers").setLevel(logging.ERROR)


def tokens_of(length: int) -> list[int]:
    tokenizer = ESM2Tokenizer()
    (ids,) = tokenizer.encode([random_protein(length, 7).encode()], ["x"])
    return [*tokenizer.begin, *ids.tolist(), *tokenizer.end]


def compare(model: Any, reference: ModelRef, folder: Path, lengths: Sequence[int] = LENGTHS) -> float:
    """Every layer of every sequence, ours packed and transformers' alone, channel by channel.

    Returns:
        The largest difference, relative to the scale of the layer's values.
    """
    weights = folder / "weights.safetensors"
    prepare_weights(reference, weights, log=lambda line: None)
    ours = load_model(weights, device="cpu", precision="fp32", logger=logging.getLogger(__name__))
    layers = range(ours.facts.layers + 1)
    sequences = [tokens_of(length) for length in lengths]
    found = ours(torch.tensor([*chain(*sequences)]), Segments.from_lengths([*map(len, sequences)]), layers)
    ends = np.cumsum([0, *map(len, sequences)])
    worst = 0.0
    with torch.inference_mode():
        for number, sequence in enumerate(sequences):
            out = model.eval()(torch.tensor([sequence]), output_hidden_states=True)
            assert len(out.hidden_states) == len(layers)
            for layer in layers:
                expected = out.hidden_states[layer][0].float()
                error = (found[layer][ends[number] : ends[number + 1]] - expected).abs().max()
                worst = max(worst, float(error / expected.abs().max()))
    assert worst < 2e-5
    return worst


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the names that writers up to transformers 5.4 have."""
    return write_folder(tmp_path_factory.mktemp("older"), SIZES, state=dict(state_of(SIZES, seed=4)))


KINDS = ("EsmModel", "EsmForMaskedLM", "EsmForSequenceClassification")


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_writes_is_read(kind: str, older: Path, tmp_path: Path) -> None:
    model = getattr(transformers, kind).from_pretrained(older, **EAGER)
    compare(model, ModelRef.of(older), tmp_path)
    model.save_pretrained(tmp_path / "new")
    compare(model, ModelRef.of(tmp_path / "new"), tmp_path)
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    compare(model, ModelRef.of(tmp_path / "shards"), tmp_path)
    torch.save(model.state_dict(), tmp_path / "bare.bin")
    compare(model, ModelRef.of(tmp_path / "bare.bin"), tmp_path)


def test_a_fresh_model_and_one_in_half_precision(tmp_path: Path) -> None:
    config = transformers.EsmConfig(
        vocab_size=33, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        position_embedding_type="rotary", token_dropout=True, pad_token_id=1, mask_token_id=32, layer_norm_eps=1e-5,
        emb_layer_norm_before=False, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    fresh = transformers.EsmForMaskedLM(config)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    fresh.save_pretrained(tmp_path / "fresh")  # norms are called gamma and beta, the frequencies stand once
    compare(fresh, ModelRef.of(tmp_path / "fresh"), tmp_path)
    fresh.to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    wide = transformers.EsmForMaskedLM.from_pretrained(tmp_path / "bf16", dtype=torch.float32, **EAGER)
    compare(wide, ModelRef.of(tmp_path / "bf16"), tmp_path)


ATTENTION = ["query", "key", "value"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ATTENTION},
    "rslora": {"target_modules": [*ATTENTION, "dense"], "use_rslora": True},
    "dora": {"target_modules": ["query", "value", "dense"], "use_dora": True},
    "patterns": {
        "target_modules": ATTENTION,
        "rank_pattern": {"layer.0.attention.self.query": 2, "key": 16},
        "alpha_pattern": {r"encoder\.layer\.[12]\.attention\.self\.value": 3, "key": 24},
    },
    "biases": {"target_modules": ATTENTION, "bias": "lora_only"},
    "all biases": {"target_modules": ["query"], "bias": "all"},
    "lora bias": {"target_modules": ["value", "dense"], "lora_bias": True},
    "embedding": {"target_modules": ["word_embeddings", "query"]},
    "saved modules": {"target_modules": ["query"], "modules_to_save": ["LayerNorm", "classifier"]},
    "some layers": {"target_modules": ["query"], "layers_to_transform": [1], "layers_pattern": "layer"},
}


CASES = [(name, "EsmForSequenceClassification") for name in ADAPTERS]
CASES += [(name, kind) for name in ("lora", "dora") for kind in ("EsmModel", "EsmForMaskedLM")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_adapter_gives_what_merge_and_unload_gives(name: str, kind: str, older: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install -e '.[oracle]')")
    base = getattr(transformers, kind).from_pretrained(older, **EAGER)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=9, **ADAPTERS[name]))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:  # as training would: B begins with zeros
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    plain = getattr(transformers, kind).from_pretrained(older, **EAGER)
    assert differs(merged, plain)
    # Whatever class the adapter was trained on: here its base is the same file.
    compare(merged, ModelRef.of(older, tmp_path / "adapter"), tmp_path, (5, 64))


def differs(one: Any, other: Any) -> bool:
    tokens = torch.tensor([tokens_of(20)])
    with torch.inference_mode():
        last = [model.eval()(tokens, output_hidden_states=True).hidden_states[-1] for model in (one, other)]
    return not torch.allclose(last[0], last[1], atol=1e-2)


@pytest.mark.skipif(
    "VIRNUCPRO_REAL_MODEL" not in os.environ, reason="VIRNUCPRO_REAL_MODEL names no folder of real weights"
)
def test_real_weights_in_every_layer(tmp_path: Path) -> None:
    folder = Path(os.environ["VIRNUCPRO_REAL_MODEL"])
    model = transformers.EsmForSequenceClassification.from_pretrained(folder, **EAGER)
    worst = compare(model, ModelRef.of(folder), tmp_path, (1, 7, 30, 100, 333, 1022, 2000))
    print(f"largest difference, of the layer's scale: {worst:.1e}")
