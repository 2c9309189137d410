"""Targets that come from strangers: checkpoints, their folders, what a server answers, and our record of weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import threading
import zipfile
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from safetensors.torch import save

from tests.fuzz.drawing import SEEDS, Target, bombs, damaged
from virnucpro.base.errors import UserError
from virnucpro.base.records import parse_record
from virnucpro.checkpoints.torch_file import verify_archive
from virnucpro.models.esm2.checkpoint import huggingface_name
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.models.families import read_checkpoint
from virnucpro.weights.download import Expected, download
from virnucpro.weights.manifest import WeightsManifest

TINY = Architecture(layers=1, embed_dim=8, heads=2)


@cache
def _checkpoint_bytes(folder: Path) -> bytes:
    path = folder / "whole.pt"
    write_checkpoint(path, TINY)
    return path.read_bytes()


def _checkpoint(seed: int, folder: Path) -> None:
    whole = _checkpoint_bytes(folder)
    path = folder / "changed.pt"
    path.write_bytes(damaged(whole, seed))
    assert read_checkpoint(path).architecture == TINY


CONFIG: dict[str, Any] = {
    "model_type": "esm", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 33, "position_embedding_type": "rotary", "token_dropout": True, "layer_norm_eps": 1e-5,
    "pad_token_id": 1, "mask_token_id": 32, "is_folding_model": False,
}  # fmt: skip
"""What transformers writes beside an ESM-2, for :data:`TINY`."""


@cache
def _folder_bytes(folder: Path) -> dict[str, bytes]:
    """HuggingFace's layout in two shards: its files by their names."""
    _checkpoint_bytes(folder)
    state = read_checkpoint(folder / "whole.pt").state
    names = {f"esm.{huggingface_name(own)}": tensor.clone().contiguous() for own, tensor in state.items()}
    files: dict[str, bytes] = {"config.json": json.dumps(CONFIG).encode()}
    index: dict[str, str] = {}
    for number in (1, 2):
        shard = {name: names[name] for name in sorted(names)[number % 2 :: 2]}
        file = f"model-{number:05}-of-00002.safetensors"
        files[file] = save(shard)
        index |= dict.fromkeys(shard, file)
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": index}).encode()
    return files


def _folder(drawn: tuple[int, str, str, Any], folder: Path) -> None:
    """A folder with bytes of one file changed, or with an entry of its configuration or index replaced."""
    seed, key, file, value = drawn
    files = dict(_folder_bytes(folder))
    name = sorted(files)[seed % len(files)]
    if seed % 3 == 0:
        files[name] = damaged(files[name], seed)
    else:
        name = "config.json" if seed % 3 == 1 else "model.safetensors.index.json"
        content = json.loads(files[name])
        inside = content if name == "config.json" else content["weight_map"]
        chosen = key if name == "config.json" else sorted(inside)[seed % len(inside)]
        inside[chosen] = value if name == "config.json" or seed % 2 else file
        files[name] = json.dumps(content).encode("utf-8", "surrogatepass")
    place = folder / "folder"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for each, data in files.items():
        (place / each).write_bytes(data)
    found = read_checkpoint(place).architecture
    assert replace(found, token_dropout=True) == TINY


FILE_NAMES = (
    "config.json",
    "../whole.pt",
    "/etc/passwd",
    "model-00003-of-00002.safetensors",
    "",
    ".",
    "a\0b",
    "\ud800",
)


# Servers


class _Server:
    """Answers every request with the same bytes, whatever they are, and hangs up."""

    def __init__(self) -> None:
        self.reply = b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/esm2.pt"
        os.environ["no_proxy"] = "127.0.0.1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            with connection, suppress(OSError):
                connection.settimeout(5)
                while b"\r\n\r\n" not in connection.recv(4096):
                    pass
                connection.sendall(self.reply)


SERVER = cache(_Server)
LINES = (
    "Content-Length: {size}", "Content-Length: {less}", "Content-Length: 0", "Content-Length: -1", "Content-Length: x",
    "Content-Length: {digits}", "Content-Range: bytes 0-{last}/{size}", "Content-Range: bytes 5-9/10", "ETag: \"a\"",
    "ETag: \x1b[2J", "ETag: a\r\n b", "Transfer-Encoding: chunked", "Content-Encoding: gzip", "Location: ftp://a/b",
    "Location: http://[", "Location: /x", "Location: \x1b", "Connection: close", "Last-Modified: {digits}", "a", ": b",
)  # fmt: skip
STATUSES = (
    "200 OK",
    "200 OK",
    "200 OK",
    "206 Partial",
    "204 None",
    "302 Found",
    "404 \x1b[2J",
    "503 Busy",
    "100 Go on",
    "x",
)


def _server(drawn: tuple[str, list[str], int, bytes], folder: Path) -> None:
    status, lines, seed, noise = drawn
    whole = _checkpoint_bytes(folder)
    body = (whole, whole, damaged(whole, seed), whole[: -seed % 5000], noise, b"\x80" + noise, b"<html>" + noise)[
        seed % 7
    ]
    head = "\r\n".join((f"HTTP/1.1 {status}", *lines, "", "")).format(
        size=len(body), less=max(0, len(body) - 10), last=len(body) - 1, digits="9" * 5000
    )
    if "chunked" in head and seed % 2:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    server = SERVER()
    server.reply = head.encode("latin-1", "replace") + body
    target = folder / "downloads" / "esm2.pt"
    shutil.rmtree(target.parent, ignore_errors=True)
    said: list[str] = []

    def check(path: Path) -> None:
        verify_archive(path)
        if read_checkpoint(path).architecture != TINY:
            raise UserError(f"{path} is another model")

    try:
        download(server.url, target, said.append, Expected(check, largest=1 << 22), timeout=20, attempts=2, pause=0.0)
    except UserError:
        assert not target.exists()
        raise
    assert all(line.isprintable() for line in said)
    check(target)


def _manifest(drawn: tuple[str, Any], folder: Path) -> None:
    """A manifest of weights whose architecture is another: it is bounded before tensors are counted out by it."""
    key, value = drawn
    whole = WeightsManifest(*_manifest_values())
    entries = {"format": whole.FORMAT, **asdict(whole)}
    entries["architecture"][key] = value
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    entries["checksum"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    found = parse_record(json.dumps(entries), WeightsManifest, folder / "weights")
    assert len(found.architecture.shapes()) < 20_000


def _manifest_values() -> tuple[Any, ...]:
    given: dict[str, Any] = {"str": "a", "int": 1, "bool": False}
    hints = WeightsManifest.__annotations__
    return tuple(
        TINY if name == "architecture" else given.get(str(hints[name]), None if "None" in str(hints[name]) else ())
        for name in hints
        if name != "FORMAT"
    )


OPERATIONS = (
    *(b"N", b"]", b"}", b")", b"(", b"t", b"e", b"u", b"a", b"s", b"b", b"R", b"Q", b"\x81", b"\x85", b"\x86", b"\x87"),
    *(
        b"\x88",
        b"\x8f",
        b"K\x01",
        b"G" + bytes(8),
        b"X\x01\0\0\0a",
        b"X\x05\0\0\0model",
        b"q\0",
        b"q\1",
        b"h\0",
        b"h\1",
    ),
    *(
        b"U\x01a",
        b"\x8a\x02\xff\x7f",
        b"J\xff\xff\xff\xff",
        b"M\xff\xff",
        b"cbuiltins\nset\n",
        b"cbuiltins\nbytearray\n",
    ),
    *(b"ccollections\nOrderedDict\n", b"ccollections\nCounter\n", b"ctorch\nFloatStorage\n", b"cargparse\nNamespace\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"cos\nsystem\n", b"."),
    *(b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\nTensor\n", b"ctorch\nSize\n", b"cpathlib\nPath\n"),
    b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x08tQ",
)
"""Operations of pickle that torch's reader knows, with what follows them."""


def _pickle(operations: list[bytes], folder: Path) -> None:
    """Operations in any order, in an archive as torch writes it: none makes a model."""
    path = folder / "pickle.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"".join(operations) + b".")
        archive.writestr("a/version", "3\n")
        archive.writestr("a/data/0", bytes(32))
    read_checkpoint(path)
    raise AssertionError("a model out of nothing")


SIZES = ("layers", "embed_dim", "heads", "family", "zzz")
ANSWERS = st.tuples(
    st.sampled_from(STATUSES), st.lists(st.sampled_from(LINES), max_size=4), SEEDS, st.binary(max_size=50)
)
FOLDERS = st.tuples(SEEDS, st.sampled_from((*CONFIG, "zzz")), st.sampled_from(FILE_NAMES), bombs())
TARGETS = (
    Target("weights manifest", st.tuples(st.sampled_from(SIZES), bombs()), _manifest, 0.04),
    Target("checkpoint", SEEDS, _checkpoint, 0.05),
    Target("pickle", st.lists(st.sampled_from(OPERATIONS), max_size=20), _pickle, 0.05),
    Target("checkpoint's folder", FOLDERS, _folder, 0.05),
    Target("a server's answer", ANSWERS, _server, 0.04),
)
