"""Wrong and foreign inputs for ``model:``: each ends in one sentence that says what it is, and with exit code 1."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.huggingface_cases import SMALL, state_of, write_adapter, write_folder
from virnucpro.cli import main
from virnucpro.models.esm2.synthetic import write_checkpoint

Make = Callable[[Path], Any]


def save(content: Any, name: str = "model.pt") -> Make:
    """A file of torch's that holds this."""

    def make(folder: Path) -> Path:
        torch.save(content, folder / name)
        return folder / name

    return make


def text(content: bytes, name: str = "pytorch_model.bin") -> Make:
    """A file that holds these bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def folder_with(change: Callable[[Path], object] | None = None, **options: Any) -> Make:
    """A folder of a checkpoint with something done to it."""

    def make(folder: Path) -> Path:
        write_folder(folder / "m", **options)
        if change is not None:
            change(folder / "m")
        return folder / "m"

    return make


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(4, 4) for name in names}


def relinked(folder: Path) -> None:
    """The second shard is a link to a file outside of the folder."""
    shard = folder / "model-00002-of-00003.safetensors"
    outside = folder.parent / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)


def halved(folder: Path) -> None:
    """Neither the index nor the first shard is there."""
    for name in ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"):
        (folder / name).unlink()


def misled(folder: Path) -> None:
    """The index names a file outside of the folder."""
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["esm.x"] = "../../x.safetensors"
    index.write_text(json.dumps(content))


def changed(name: str, tensor: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = state_of(SMALL) | ({} if tensor is None else {name: tensor})
    return {key: value for key, value in state.items() if tensor is not None or key != name}


def fair(change: Callable[[dict[str, Any]], object]) -> Make:
    """A checkpoint in fair-esm's layout with something done to it."""

    def make(folder: Path) -> Path:
        path = folder / "esm2.pt"
        write_checkpoint(path, SMALL, regression=False)
        content = torch.load(path, weights_only=False)  # ours
        change(content)
        torch.save(content, path)
        return path

    return make


ESM1V = [
    f"encoder.sentence_encoder.{name}.weight"
    for name in ("embed_tokens", "embed_positions", "layers.0.self_attn_layer_norm", "layers.0.fc1")
]
QUERY = "esm.encoder.layer.0.attention.self.query.weight"
NO_FREQUENCIES = {name: tensor for name, tensor in state_of(SMALL).items() if "inv_freq" not in name}
CASES: dict[str, tuple[Make, str]] = {
    "ESM-1b of transformers": (folder_with(position_embedding_type="absolute"), "ESM-1b or ESM-1v, which have learned"),
    "ESM-1v of fair-esm": (
        save({"args": argparse.Namespace(arch="roberta_large"), "model": tensors(*ESM1V)}),
        "is an older ESM model (architecture 'roberta_large'), not ESM-2",
    ),
    "ESM C": (save(tensors("transformer.blocks.0.attn.layernorm_qkv.1.weight")), "is ESM C"),
    "ESM3": (save(tensors("encoder.sequence_embed.weight", "x")), "is ESM3"),
    "ESMFold": (folder_with(is_folding_model=True), "is ESMFold: give the language model in it"),
    "SaProt": (folder_with(vocab_size=446), "is SaProt, whose 446 tokens"),
    "ProtT5": (save(tensors("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight")), "is ProtT5"),
    "a BERT": (save(tensors("bert.embeddings.token_type_embeddings.weight")), "is a BERT"),
    "the MSA Transformer": (save(tensors("layers.0.row_self_attention.layer.k_proj.weight")), "is the MSA Transformer"),
    "a language model of text": (save(tensors("model.layers.0.self_attn.q_proj.weight")), "is a language model of"),
    "an adapter alone": (
        lambda folder: write_adapter(folder / "a", {"encoder.layer.0.x.lora_A.weight": torch.zeros(2, 2)}),
        "holds an adapter of 'facebook/esm2_t6_8M_UR50D' without its base model",
    ),
    "an adapter's file": (save({"base_model.model.q.lora_A.weight": torch.zeros(2, 2)}, "a.bin"), "is an adapter (L"),
    "an adapter that is not merged": (
        save(changed("esm.encoder.layer.0.attention.self.query.lora_A.weight", torch.zeros(2, 32)), "m.bin"),
        "holds a model with an adapter that is not merged into it",
    ),
    "a pointer of Git LFS": (
        text(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"),
        "is a Git LFS pointer, which stands for the file: run `git lfs pull`",
    ),
    "a web page": (text(b"<!DOCTYPE html><html>Sign in</html>"), "is a web page (HTML"),
    "an empty file": (text(b""), "it is empty"),
    "FASTA": (text(b">a\nMKV\n", "proteins.faa"), "it looks like FASTA, which belongs to `samples:`"),
    "GGUF": (text(b"GGUF\x03\0\0\0", "esm2.gguf"), "it is GGUF"),
    "Keras": (text(b"\x89HDF\r\n\x1a\n" + bytes(64), "tf_model.h5"), "it is HDF5"),
    "a packed folder": (text(b"\x1f\x8b\x08" + bytes(64), "esm2.tar.gz"), "it is packed: unpack it"),
    "half a set of shards": (
        folder_with(lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(), shards=3),
        "lacks 'model-00002-of-00003.safetensors' of the 3 files",
    ),
    "half a set without an index": (folder_with(halved, shards=2, pickled=True), "'pytorch_model-00001-of-00002.bin'"),
    "one shard": (
        lambda folder: write_folder(folder / "m", shards=2) / "model-00001-of-00002.safetensors",
        "is one of 2 parts of a checkpoint: give its folder",
    ),
    "an index that leads outside": (folder_with(misled, shards=2), "which is not in its folder: nothing is read there"),
    "a link that leads outside": (folder_with(relinked, shards=3), "outside of its folder, which is not followed"),
    "a configuration": (lambda folder: write_folder(folder / "m") / "config.json", "is a configuration: give the path"),
    "an empty folder": (lambda folder: folder, "holds no checkpoint: neither model.safetensors"),
    "a folder for TensorFlow": (
        lambda folder: text(b"\x89HDF", "tf_model.h5")(folder).parent,
        "tf_model.h5 is not of PyTorch",
    ),
    "no such path": (lambda folder: folder / "none.pt", "does not exist"),
    "no such repository": (lambda folder: "some/where", "cannot get some/where from the hub, and no path here"),
    "a misspelt name": (lambda folder: "esm2_t33_650M", "did you mean esm2_t33_650M_UR50D?"),
    "another vocabulary": (
        folder_with(state=changed("esm.embeddings.word_embeddings.weight", torch.zeros(34, 32))),
        "its table of tokens has shape",
    ),
    "a tensor too few": (folder_with(state=changed(QUERY, None)), "is not a complete ESM-2 checkpoint"),
    "a tensor too many": (
        folder_with(state=changed("esm.encoder.layer.0.attention.self.gate.weight", torch.zeros(2))),
        "that ESM-2 does not have",
    ),
    "integers": (folder_with(state=changed(QUERY, torch.zeros(32, 32, dtype=torch.int8))), "is torch.int8"),
    "another shape": (folder_with(state=changed(QUERY, torch.zeros(32, 31))), "has shape (32, 31), not (32, 32)"),
    "numbers that are not finite": (
        folder_with(state=changed(QUERY, torch.full((32, 32), float("nan")))),
        "holds a number that is not finite",
    ),
    "heads that nothing tells": (
        save({name.removeprefix("esm."): tensor for name, tensor in NO_FREQUENCIES.items()}, "bare.bin"),
        'does not say how many attention heads it has: put a config.json beside it that holds {"model_type": "esm"',
    ),
    "a configuration of other sizes": (folder_with(num_hidden_layers=5), "5"),
    "a configuration that is no JSON": (
        folder_with(lambda folder: (folder / "config.json").write_text("{")),
        "is damaged: it is not JSON",
    ),
    "a whole module": (save(torch.nn.Linear(2, 2), "module.pt"), "which could run foreign code, so it is not read"),
    "settings that are a number": (
        fair(lambda content: content.update(cfg={"model": 7})),
        "its settings (cfg.model) are",
    ),
    "a model and an adapter in one folder": (
        folder_with(lambda folder: (folder / "adapter_config.json").write_text("{}")),
        "holds a model and an adapter",
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_what_it_is_in_one_sentence(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, says = CASES[kind]
    (tmp_path / "in").mkdir()
    model = make(tmp_path / "in")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "--model", os.fspath(model), "-o", str(tmp_path / "out")])
    said = capsys.readouterr().err.strip().splitlines()
    sentence = said[-1]
    assert ended.value.code == 1
    assert "Traceback" not in "".join(said)
    assert "defect of virnucpro" not in "".join(said)
    assert says in sentence, sentence
    assert len(sentence) < 600
    assert not list(tmp_path.glob("out/*.safetensors"))
    print(f"{kind}: {sentence.replace(str(tmp_path / 'in'), '...')}")
