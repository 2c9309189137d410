"""A user's mistake ends in one clear sentence, exit code 1, no traceback, and nothing half-written."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.workflow.running import ROOT, snakemake
from virnucpro.models.esm2.sizes import DEMO_ARCHITECTURE
from virnucpro.models.esm2.synthetic import write_checkpoint

GOOD = ">a\nMKVLAAGIV\n>b\nMKVX\n"


def assert_one_sentence(folder: Path, config: dict[str, object], words: list[str], *, log: str | None = None) -> None:
    env = {"TORCH_HOME": str(folder / "hub"), "no_proxy": "*", "VIRNUCPRO_DISPLAY": ""}
    result = snakemake(folder, config=config, env=env)
    assert result.code == 1
    assert "Traceback" not in result.text, result.text
    lines = [line for line in result.text.splitlines() if "error: " in line]
    assert lines == result.text.splitlines()[-1:], result.text
    assert [word for word in words if word not in lines[0]] == [], lines[0]
    if log is not None:
        last = (folder / "results" / "logs" / log).read_text().splitlines()[-1]
        assert last.endswith(lines[0].partition("error: ")[2])
    made = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in made if name.startswith(("embeddings.", "summary."))], made
    assert not list(folder.rglob("tensors/*"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b">a\nMKV\n>b\nMKV\n>a\nMKL\n", ["own.faa", "line 5", "'a'"]),
        (b">a\nMKV\n>empty\n>b\nMKV\n", ["own.faa", "line 3", "empty"]),
        (b"This is a letter,\nnot sequences.\n", ["own.faa", "line 1", "FASTA"]),
        (b">a\nMKV\n>b\nMK7V\n", ["own.faa", "line 4", "'b'", "7"]),
        (b"", ["own.faa", "FASTA"]),
        (gzip.compress(GOOD.encode() * 999)[:-20], ["own.faa", "cut short"]),
        (b"\x89PNG\r\n\x1a\n\0\0\0", ["own.faa"]),
    ],
    ids=["duplicate id", "empty record", "not FASTA", "digit", "empty file", "cut gzip", "binary"],
)
def test_a_wrong_fasta(text: bytes, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "own.faa").write_bytes(text)
    config: dict[str, object] = {"samples": "own.faa", "model": "esm2_demo"}
    assert_one_sentence(tmp_path, config, words, log="split_proteins.log")
    assert not (tmp_path / "results/own/proteins.parquet").exists()
    assert not (tmp_path / "results/chunks").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"samples": "missing.faa"}, ["missing.faa", "does not exist"]),
        ({"samples": "own.faa", "modle": "esm2_demo"}, ["'modle'", "'model'"]),
        ({"samples": "own.faa", "model": "missing.pt"}, ["missing.pt", "does not exist"]),
        ({"samples": "{logs: own.faa}"}, ["'logs'", "a file or folder of ours"]),
        ({"samples": "{a: own.faa, a: own.faa}"}, ["'a'", "twice"]),
        ({"samples": "own.faa", "results": "out{x}"}, ["'results'", "out{x}", "Snakemake"]),
        ({"samples": "own.faa", "model": "esm2_demo", "layers": 5}, ["layer 5", "4 layers"]),
    ],
)
def test_a_wrong_setting(config: dict[str, object], words: list[str], tmp_path: Path) -> None:
    (tmp_path / "own.faa").write_text(GOOD)
    assert_one_sentence(tmp_path, config, words)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


def cut(path: Path) -> None:
    write_checkpoint(path, DEMO_ARCHITECTURE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def malicious(path: Path) -> None:
    model = Namespace(encoder_layers=1, encoder_embed_dim=8, encoder_attention_heads=1, token_dropout=True)
    torch.save({"cfg": {"model": model}, "model": {"x": Malicious(path.parent / "owned")}}, path)


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Malicious(path.parent / "owned")))


def no_checkpoint(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


@pytest.mark.parametrize("write", [cut, malicious, bare_pickle, no_checkpoint])
def test_a_wrong_checkpoint(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "own.faa").write_text(GOOD)
    write(tmp_path / "model.pt")
    config: dict[str, object] = {"samples": "own.faa", "model": "model.pt"}
    assert_one_sentence(tmp_path, config, ["model.pt"], log="prepare_weights.log")
    assert not (tmp_path / "owned").exists(), "the pickle was run"
    assert not list(tmp_path.glob("resources/*"))


def test_a_layer_that_the_checkpoint_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "own.faa").write_text(GOOD)
    write_checkpoint(tmp_path / "model.pt", DEMO_ARCHITECTURE)
    config: dict[str, object] = {"samples": "own.faa", "model": "model.pt", "layers": 5}
    assert_one_sentence(tmp_path, config, ["layer 5", "4 layers"], log="embed_esm2/chunk_00000.log")


def test_without_network_the_shipped_config_says_which_file_to_put_where(tmp_path: Path) -> None:
    # A proxy that nobody listens at stands for a machine without network.
    env = {
        "TORCH_HOME": str(tmp_path / "hub"),
        "https_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    result = snakemake(ROOT, "--directory", str(tmp_path), snakefile=None, env=env)
    assert result.code == 1
    assert "Traceback" not in result.text, result.text
    (line,) = [line for line in result.text.splitlines() if "error: " in line]
    url = "https://dl.fbaipublicfiles.com/fair-esm/models/esm2_t36_3B_UR50D.pt"
    for words in (url, str(tmp_path / "hub" / "hub" / "checkpoints" / "esm2_t36_3B_UR50D.pt"), "model"):
        assert words in line


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to become less")
@pytest.mark.parametrize(
    ("name", "words"),
    [("x.pt", ["Permission denied", "x.pt"]), (".", ["keeps its records in the working folder", "--directory"])],
    ids=["the model", "the working folder"],
)
def test_what_another_user_keeps_to_himself(name: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "own.faa").write_text(GOOD)
    (tmp_path / "x.pt").write_bytes(b"x")
    os.chown(tmp_path / name, 65534, 65534)
    (tmp_path / name).chmod(0o600 if name == "x.pt" else 0o755)
    config = {"samples": "own.faa", "model": "x.pt" if name == "x.pt" else "esm2_demo"}
    # Root without what lets it read and write everything: a user like others, whom Python's files belong to.
    within = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
    result = snakemake(tmp_path, "-n", config=config, within=within)
    assert result.code == 1
    (line,) = [line for line in result.text.splitlines() if line.startswith("error: ")]
    assert [word for word in words if word not in line] == [], line
    assert "Traceback" not in result.text
    assert "Exception" not in result.text
