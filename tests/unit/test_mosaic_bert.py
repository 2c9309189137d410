"""DNABERT-S: its forward against a restatement from the formula, its tokens, its checkpoints, and a whole job."""

from __future__ import annotations

import importlib
import json
import logging
import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.attention.candidates import TritonAttention
from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.engine.embed import Protein, embed_proteins
from virnucpro.engine.load import build_model
from virnucpro.models.families import read_checkpoint
from virnucpro.models.mosaic_bert.family import fused_form, random_state, write_checkpoint
from virnucpro.models.mosaic_bert.model import MosaicBert, Parameters
from virnucpro.models.mosaic_bert.sizes import DEMO_SIZES, MOSAIC_MODELS, MosaicSizes, alibi_slopes
from virnucpro.models.mosaic_bert.tokenizer import NucleotideTokenizer, checked_tokenizer, demo_tokenizer
from virnucpro.weights.file import load_weights
from virnucpro.weights.locate import locate_checkpoint
from virnucpro.weights.manifest import read_manifest, read_weights
from virnucpro.weights.prepare import prepare_weights

CPU = torch.device("cpu")
LOGGER = logging.getLogger(__name__)
SMALL = MosaicSizes(layers=3, embed_dim=96, heads=6, hidden=160, vocabulary=50)


def restated(state: dict[str, Tensor], sizes: MosaicSizes, ids: Tensor) -> list[Tensor]:
    """Every layer of one sequence, float64, from the published formula and the published table of slopes."""
    s = {name: tensor.double() for name, tensor in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-12).sqrt()
        return scaled * s[f"{name}.weight"] + s[f"{name}.bias"]

    x = norm(
        s["embeddings.word_embeddings.weight"][ids] + s["embeddings.token_type_embeddings.weight"][0],
        "embeddings.LayerNorm",
    )
    place = torch.arange(len(ids)).double()
    found, d = [x], sizes.head_dim
    for number in range(sizes.layers):
        name = f"encoder.layer.{number}."
        qkv = x @ s[name + "attention.self.Wqkv.weight"].T + s[name + "attention.self.Wqkv.bias"]
        q, k, v = qkv.split(sizes.embed_dim, 1)
        heads = []
        for head, slope in enumerate(SLOPES[sizes.heads]):
            own = slice(head * d, head * d + d)
            logits = q[:, own] @ k[:, own].T / math.sqrt(d) - slope * (place[:, None] - place).abs()
            heads.append(logits.softmax(1) @ v[:, own])
        out = torch.cat(heads, 1) @ s[name + "attention.output.dense.weight"].T
        x = norm(out + s[name + "attention.output.dense.bias"] + x, name + "attention.output.LayerNorm")
        gated = x @ s[name + "mlp.gated_layers.weight"].T
        gate, up = gated[:, : sizes.hidden], gated[:, sizes.hidden :]
        hidden = gate * (1 + torch.erf(gate / math.sqrt(2))) / 2 * up
        x = norm(hidden @ s[name + "mlp.wo.weight"].T + s[name + "mlp.wo.bias"] + x, name + "mlp.layernorm")
        found.append(x)
    return found


SLOPES = {
    3: [0.0625, 0.00390625, 0.25],
    6: [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125],
    12: [2.0**-i for i in range(1, 9)] + [2.0 ** -(i + 0.5) for i in range(4)],
}


def test_slopes_are_the_published_ones() -> None:
    for heads, slopes in SLOPES.items():
        assert alibi_slopes(heads) == pytest.approx(slopes, rel=1e-12)


def test_every_layer_is_the_formulas_alone_and_in_company() -> None:
    state = random_state(SMALL, seed=3)
    model = build_model(state, SMALL, device=CPU, dtype=torch.float32, logger=LOGGER)
    lengths = [600, 1, 2, 3, 106, 106, 64, 65, 300]
    ids = torch.randint(SMALL.vocabulary, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    layers = range(SMALL.layers + 1)
    with torch.inference_mode():
        together = model(ids, Segments.from_lengths(lengths), layers)
    for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        own = ids[start : start + length]
        with torch.inference_mode():
            alone = model(own, Segments.from_lengths([length]), layers)
        for layer, expected in enumerate(restated(state, SMALL, own)):
            scale = expected.abs().amax(0)  # of each channel
            for found in (alone[layer], together[layer][start : start + length]):
                assert found.dtype == torch.float32
                assert bool(((found - expected).abs() <= 2e-5 * scale.clamp(min=1)).all()), (length, layer)


def test_the_published_count_of_parameters() -> None:
    sizes = MOSAIC_MODELS["dnabert_s"]
    assert sizes.parameters == sum(math.prod(shape) for shape in sizes.shapes().values())
    assert sizes.parameters + 768 * 768 + 768 == 117_068_544  # with the pooler
    assert len(sizes.shapes()) + 2 == 138


def plain_tokens(tokenizer: dict[str, object], sequence: str) -> list[int]:
    """Byte pairs restated: the pair of the lowest rank everywhere from left to right, until there is none."""
    model = tokenizer["model"]
    assert isinstance(model, dict)
    vocab = model["vocab"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    rank = {merge: number for number, merge in enumerate(merges)}
    found = [vocab["[CLS]"]]
    words = sequence.replace("-", " - ").replace(".", " . ").split()
    for word in words:
        parts = list(word)
        while True:
            pairs = [pair for pair in pairwise(parts) if pair in rank]
            if not pairs:
                break
            best = min(pairs, key=rank.__getitem__)
            merged: list[str] = []
            while parts:
                step = 2 if tuple(parts[:2]) == best else 1
                merged.append("".join(parts[:step]))
                parts = parts[step:]
            parts = merged
        found += [vocab.get(part, vocab["[UNK]"]) for part in parts]
    return [*found, vocab["[SEP]"]]


def test_tokens_are_a_plain_restatements() -> None:
    text = demo_tokenizer(64)
    generator = random.Random(5)
    letters = ["ACGT" * 12 + "NRYKMSWBDHVU", "ACGT", "AN-."]
    frames = ["".join(generator.choices(letters[number % 3], k=number % 160 + 1)) for number in range(600)]
    frames += ["A" * 500, "N" * 500]
    found = NucleotideTokenizer(text).encode([frame.encode() for frame in frames], frames)
    assert [ids.tolist() for ids in found] == [plain_tokens(json.loads(text), frame) for frame in frames]
    # What a file asks for by way of padding and truncation is not done.
    padded = json.loads(text) | {
        "truncation": {"direction": "Right", "max_length": 20, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 2000},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 3,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
    }
    again = NucleotideTokenizer(json.dumps(padded)).encode([frames[-1].encode()], ["n"])
    assert again[0].tolist() == [1, *[0] * 500, 2]
    with pytest.raises(UserError, match="sequence 'p' has 'E', which is no nucleotide"):
        NucleotideTokenizer(text).encode([b"ACGE"], ["p"])


def test_a_job_means_over_all_tokens(tmp_path: Path) -> None:
    lines: list[str] = []
    weights = tmp_path / "dnabert_s_demo.safetensors"
    manifest = prepare_weights("dnabert_s_demo", weights, log=lines.append)
    assert manifest == read_manifest(weights)
    assert manifest.demo
    assert any("is random" in line for line in lines)
    assert json.loads(read_weights(weights).tokenizer) == json.loads(demo_tokenizer(64))
    frames = {"a": b"ACGTNACGTTTTGCA" * 9, "b": b"N" * 7, "c": b"ACG"}
    proteins = [Protein(name, sequence) for name, sequence in frames.items()]
    settings = EmbeddingSettings(layers=(-1,), precision="fp32")
    found = embed_proteins(proteins, read_weights(weights), settings, logger=LOGGER).tensors
    assert found["lengths"].tolist() == [len(sequence) for sequence in frames.values()]
    state = load_weights(weights)[1]
    for row, sequence in enumerate(frames.values()):
        ids = plain_tokens(json.loads(demo_tokenizer(64)), sequence.decode())
        assert found["embedded"][row] == len(ids)
        expected = restated(state, DEMO_SIZES, torch.tensor(ids))[-1].mean(0)
        np.testing.assert_allclose(found[f"mean.{DEMO_SIZES.layers}"][row], expected, rtol=0, atol=2e-5)


def test_demo_weights_never_change() -> None:
    state = random_state(DEMO_SIZES, seed=20240213)
    total = sum(float(tensor.double().abs().sum()) for tensor in state.values())
    assert total == pytest.approx(7481.2504790973535, abs=1e-6)


def test_the_tokenizer_is_part_of_the_weights_identity(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one", SMALL)
    found = []
    for name in ("one", "other"):
        if name == "other":
            content = json.loads((tmp_path / "one" / "tokenizer.json").read_text())
            content["model"]["merges"].pop()
            (tmp_path / "one" / "tokenizer.json").write_text(json.dumps(content))
        path = tmp_path / "one" / "pytorch_model.bin"
        found.append(prepare_weights(str(path), tmp_path / f"{name}.safetensors", log=lambda line: None))
    assert found[0].source_sha256 != found[1].source_sha256  # of all files of the checkpoint
    assert found[0].sha256 != found[1].sha256
    content = (tmp_path / "one.safetensors").read_bytes()
    (tmp_path / "one.safetensors").write_bytes(content.replace(b"Whitespace", b"Whitespac3", 1))
    with pytest.raises(UserError, match="damaged"):
        load_weights(tmp_path / "one.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: content.update(normalizer={"type": "Lowercase"}), "of another model"),
        (lambda content: content.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+b"}}), "of another"),
        (lambda content: content["added_tokens"].append({"id": 9999, "content": "A"}), "of another model"),
        (lambda content: content["post_processor"]["special_tokens"]["[CLS]"].update(ids=[10**6]), "of another model"),
        (lambda content: content["post_processor"].update(single=[{}]), "is damaged or no tokenizer"),
        (lambda content: content["model"].update(merges=["A CG T"]), "is damaged or no tokenizer"),
        (lambda content: content["model"].update(merges=["A TTTTTTTT"]), "of another model"),
        (lambda content: content["model"].update(continuing_subword_prefix="##"), "of another model"),
        (lambda content: content["model"].update(vocab=[]), "is damaged or no tokenizer"),
        (lambda content: content["model"]["vocab"].update({"\x1b[2J": "x"}), "is damaged or no tokenizer"),
    ],
)
def test_a_tokenizer_that_would_harm(change: Callable[[Any], None], says: str) -> None:
    content = json.loads(demo_tokenizer(64))
    change(content)
    with pytest.raises(UserError, match=says):
        checked_tokenizer(json.dumps(content), "tokenizer.json", 64)


def test_a_checkpoint_is_whole_or_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, SMALL, dtype=torch.float16)
    state = torch.load(path, weights_only=True)
    assert read_checkpoint(tmp_path).architecture == SMALL
    assert not any("pooler" in name for name in read_checkpoint(path).state)

    def refused(content: dict[str, Tensor], why: str) -> None:
        torch.save(content, path)
        with pytest.raises(UserError, match=why):
            read_checkpoint(path)

    gone = "encoder.layer.1.mlp.wo.bias"
    refused({name: tensor for name, tensor in state.items() if name != gone}, f"{gone}' is missing")
    refused(state | {"encoder.layer.1.mlp.wo.more": torch.zeros(3)}, "no tensor 'encoder.layer.1.mlp.wo.more'")
    refused(state | {gone: torch.zeros(7)}, r"has shape \(7,\)")
    words = "embeddings.word_embeddings.weight"
    refused(state | {words: torch.zeros(51, 96)}, "has 50 tokens and the model's embedding 51")
    torch.save({f"module.bert.{name}": tensor for name, tensor in state.items()}, path)
    assert read_checkpoint(path).architecture == SMALL
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        read_checkpoint(path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        read_checkpoint(path)


def test_the_released_name_says_what_to_fetch() -> None:
    with pytest.raises(UserError, match="zhihan1996/DNABERT-S"):
        locate_checkpoint("dnabert_s", print)


@pytest.fixture
def kernels() -> ModuleType:
    """The kernels as Triton's interpreter runs them, on CPU tensors (tests/conftest.py turns it on)."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not triton.knobs.runtime.interpret:
        pytest.skip("Triton compiles for a GPU here: benchmarks/bench_dnabert_s.py compares there")
    return importlib.import_module("virnucpro.kernels.gated")


@pytest.mark.parametrize("dim", [48, 768])
def test_the_norm_of_a_sum(kernels: ModuleType, dim: int) -> None:
    x, added, (offset, weight, bias) = numbers(5, dim).half(), numbers(5, dim, seed=1).half(), numbers(3, dim, seed=2)
    expected = F.layer_norm(x.float() + added.float() + offset, (dim,), weight, bias, 1e-12)
    found = kernels.sum_norm(x, added, offset, weight, bias, 1e-12)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-5)


def test_the_gated_gelu(kernels: ModuleType) -> None:
    x = numbers(37, 2 * 72).half()
    gate, up = x.float().chunk(2, dim=1)
    torch.testing.assert_close(kernels.gated_gelu(x).float(), F.gelu(gate) * up, rtol=1e-3, atol=1e-6)


def test_the_fused_form_is_the_readable_one(kernels: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    state = random_state(SMALL, seed=3)
    model = MosaicBert(Parameters.arrange(state, SMALL, device=CPU, dtype=torch.float16), SMALL, TritonAttention())
    with caplog.at_level(logging.INFO):
        fused = fused_form(model, LOGGER)
    assert fused.facts.layers_run == "fused", caplog.text
    lengths = [70, 3]
    ids = torch.randint(SMALL.vocabulary, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    layers = range(SMALL.layers + 1)
    with torch.inference_mode():
        ours, theirs = (one(ids, Segments.from_lengths(lengths), layers) for one in (fused, model))
    truth = [
        torch.cat(parts) for parts in zip(*(restated(state, SMALL, own) for own in ids.split(lengths)), strict=True)
    ]
    for layer in layers:
        assert float((ours[layer] - truth[layer]).norm()) <= 1.5 * float((theirs[layer] - truth[layer]).norm()) + 1e-5


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
