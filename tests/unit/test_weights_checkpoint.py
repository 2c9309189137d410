"""Good checkpoints are read as fair-esm reads them; unsafe, damaged or foreign ones end in one clear sentence."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import esm
import pytest
import torch

from virnucpro.base.errors import UserError
from virnucpro.checkpoints.torch_file import verify_archive
from virnucpro.models.esm2.checkpoint import load_checkpoint, read_checkpoint
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import write_checkpoint

SMALL = Architecture(layers=2, embed_dim=32, heads=4)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "esm2_small.pt"
    write_checkpoint(path, SMALL, seed=3)
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Load freely (the file is ours), change, save."""
    content = torch.load(path, weights_only=False)
    changed = change(content)
    torch.save(content if changed is None else changed, path)


def refused(path: Path) -> str:
    """The one sentence that reading ``path`` ends in."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert path.stem in message
    return message


@pytest.mark.parametrize("prefix", ["encoder.", "encoder.sentence_encoder."])
def test_state_is_what_fair_esms_own_loader_gives(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "esm2_small.pt"
    write_checkpoint(path, SMALL, seed=3, prefix=prefix, outliers=True)
    with torch.serialization.safe_globals([argparse.Namespace]):
        model, _ = esm.pretrained.load_model_and_alphabet_local(path)
    architecture, state = load_checkpoint(path)
    assert architecture == SMALL
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    for name in expected:
        assert torch.equal(state[name], expected[name]), name
    model.load_state_dict(state)  # strict


def test_no_regression_file_no_contact_head(tmp_path: Path) -> None:
    path = tmp_path / "esm2_small.pt"
    write_checkpoint(path, SMALL, regression=False)
    _, state = load_checkpoint(path)
    assert not any(name.startswith("contact_head") for name in state)
    assert "lm_head.dense.weight" in state


def test_contact_head_inside_the_checkpoint_is_welcome(checkpoint: Path) -> None:
    contact = torch.load(checkpoint.with_name("esm2_small-contact-regression.pt"))["model"]
    edit(checkpoint, lambda content: content["model"].update(contact))
    checkpoint.with_name("esm2_small-contact-regression.pt").unlink()
    _, state = load_checkpoint(checkpoint)
    assert torch.equal(state["contact_head.regression.weight"], contact["contact_head.regression.weight"])


def test_tensors_are_mapped_not_read(checkpoint: Path) -> None:
    _, state = load_checkpoint(checkpoint)
    assert str(checkpoint) in Path("/proc/self/maps").read_text()
    del state


def test_torchs_old_format_and_a_compressed_archive_are_read_too(checkpoint: Path, tmp_path: Path) -> None:
    expected = read_checkpoint(checkpoint)
    old = tmp_path / "old.pt"
    torch.save(torch.load(checkpoint, weights_only=False), old, _use_new_zipfile_serialization=False)
    compressed = tmp_path / "compressed.pt"
    with (
        zipfile.ZipFile(checkpoint) as archive,
        zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in archive.namelist():
            deflated.writestr(name, archive.read(name))
    for path in (old, compressed):
        found = read_checkpoint(path)
        verify_archive(path)
        assert found.architecture == expected.architecture
        assert all(torch.equal(found.state[name], expected.state[name]) for name in expected.state)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "was_run"
    content = torch.load(checkpoint, weights_only=False)
    content["cfg"]["evil"] = Evil(mark)
    if kind == "pickle":
        checkpoint.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, checkpoint, _use_new_zipfile_serialization=kind == "zip")
    message = refused(checkpoint)
    assert "system" in message
    assert "foreign code" in message
    assert not mark.exists()
    torch.load(checkpoint, weights_only=False) if kind != "pickle" else pickle.loads(checkpoint.read_bytes())
    assert mark.exists()  # the file really was malicious


def test_the_permission_for_namespace_ends_with_the_load(checkpoint: Path) -> None:
    load_checkpoint(checkpoint)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.999])
def test_cut_short(checkpoint: Path, share: float) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(len(whole) * share)])
    assert "cut short" in refused(checkpoint)


def test_every_cut_in_the_last_kilobyte_is_noticed(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    for missing in range(1, 1024, 31):
        checkpoint.write_bytes(whole[:-missing])
        refused(checkpoint)


def test_a_flipped_byte_in_a_tensor_is_found(checkpoint: Path) -> None:
    verify_archive(checkpoint)
    whole = bytearray(checkpoint.read_bytes())
    weight = load_checkpoint(checkpoint)[1]["layers.1.fc1.weight"].numpy().tobytes()
    whole[whole.index(weight) + 100] ^= 1
    checkpoint.write_bytes(whole)
    read_checkpoint(checkpoint)  # its form is right
    with pytest.raises(UserError, match="damaged"):
        verify_archive(checkpoint)


def test_zeros_where_the_disk_lost_a_part(checkpoint: Path) -> None:
    whole = bytearray(checkpoint.read_bytes())
    whole[2000:30000] = bytes(28000)
    checkpoint.write_bytes(whole)
    with pytest.raises(UserError, match=r"damaged|cut short"):
        verify_archive(checkpoint)


def rewrite(path: Path, compression: int, change: Callable[[str, bytes], bytes]) -> None:
    """Write the archive anew, with right checksums, each record's bytes as ``change`` gives them."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("kept", [0, 128, -4])
def test_a_record_that_is_shorter_than_its_tensor(checkpoint: Path, compression: int, kept: int) -> None:
    """A mapped tensor would run on into the next record: other numbers, and each record's checksum is right."""
    rewrite(checkpoint, compression, lambda name, data: data[:kept] if name.endswith("/data/7") else data)
    verify_archive(checkpoint)
    assert "damaged" in refused(checkpoint)


def test_a_record_that_is_longer_than_its_tensor(checkpoint: Path) -> None:
    rewrite(checkpoint, zipfile.ZIP_STORED, lambda name, data: data + bytes(64) * name.endswith("/data/7"))
    assert "its records are not of its tensors' sizes" in refused(checkpoint)


def test_other_tensors_beside_the_models_and_shared_ones_are_welcome(checkpoint: Path) -> None:
    expected = {name: tensor.clone() for name, tensor in read_checkpoint(checkpoint).state.items()}  # not mapped

    def add(content: dict[str, Any]) -> dict[str, Any]:
        state = content["model"]
        name = "encoder.sentence_encoder.embed_tokens.weight"
        state[name] = torch.cat([state[name], state[name]])[: len(state[name])]  # a part of its storage
        return {"before": torch.ones(3, 5), **content, "after": [state[name], torch.ones(7)]}

    edit(checkpoint, add)
    found = read_checkpoint(checkpoint).state
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def save(content: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda _: content


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        del content["model"]["encoder.sentence_encoder." + name]

    return change


def put(name: str, tensor: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].update({"encoder.sentence_encoder." + name: tensor})


def setting(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: setattr(content["cfg"]["model"], name, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (save(torch.zeros(3)), "holds a Tensor"),
        (save([1, 2]), "holds a list"),
        (
            lambda content: {"args": argparse.Namespace(arch="roberta_large"), "model": content["model"]},
            "'roberta_large'",
        ),
        (save({"embed_tokens.weight": torch.zeros(33, 32)}), "a model not known here"),
        (save({"cfg": {"model": argparse.Namespace()}, "model": {}}), "holds no tensors"),
        (lambda content: {"cfg": {"model": 5}, "model": content["model"]}, "(cfg.model) are 5"),
        (setting("encoder_layers", "2; rm"), "encoder_layers is '2; rm'"),
        (setting("encoder_layers", True), "encoder_layers is True"),
        (setting("encoder_layers", 10**9), "encoder_layers is 1000000000"),
        (setting("encoder_layers", 3), "(cfg.model) say 3"),
        (setting("encoder_layers", 1), "(cfg.model) say 1"),
        (setting("encoder_attention_heads", 5), "cannot be shared by 5 heads"),
        (setting("token_dropout", "yes"), "token_dropout is 'yes'"),
        (without("layers.1.fc2.bias"), "'layers.1.fc2.bias' missing"),
        (without("layers.0.self_attn.rot_emb.inv_freq"), "inv_freq' missing"),
        (put("layers.1.adapter.weight", torch.zeros(2)), "layers.1.adapter.weight' that ESM-2 does not have"),
        (put("layers.1.fc2.bias", torch.zeros(31)), "layers.1.fc2.bias' has shape (31,)"),
        (put("embed_tokens.weight", torch.zeros(35, 32)), "shape (35, 32)"),
        (put("layers.1.fc2.bias", torch.zeros(32, dtype=torch.int8)), "torch.int8"),
        (put("layers.1.fc2.bias", torch.zeros(32).to_sparse()), "sparse"),
        (put("layers.1.fc2.bias", 3.0), "layers.1.fc2.bias' missing"),
    ],
)
def test_what_is_not_a_whole_esm2(checkpoint: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    edit(checkpoint, change)
    assert says in refused(checkpoint)


def test_a_wrong_contact_regression_file_is_named(checkpoint: Path) -> None:
    beside = checkpoint.with_name("esm2_small-contact-regression.pt")
    torch.save({"model": {"contact_head.regression.weight": torch.zeros(1, 3)}}, beside)
    assert "contact-regression" in refused(checkpoint)
    beside.write_bytes(b"")
    assert "contact-regression" in refused(checkpoint)


@pytest.mark.parametrize(
    "content", [b"", b"<html>no</html>", b">id\nMKV\n", os.urandom(5000), b"PK\x03\x04" + bytes(99)]
)
def test_not_a_checkpoint_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "esm2_x.pt"
    path.write_bytes(content)
    assert "no PyTorch checkpoint" in refused(path)


def test_no_such_file(tmp_path: Path) -> None:
    assert "no checkpoint at" in refused(tmp_path / "esm2_x.pt")
    (tmp_path / "esm2_y.pt").mkdir()
    assert "holds no checkpoint" in refused(tmp_path / "esm2_y.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive(tmp_path: Path) -> None:
    path = tmp_path / "esm2_script.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert "no PyTorch checkpoint" in refused(path)
