"""Files made to harm whoever reads them: each ends in one sentence, in little memory, and nothing in it is ever run."""

from __future__ import annotations

import argparse
import copyreg
import io
import json
import multiprocessing
import pickle
import resource
import struct
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from virnucpro.base.errors import UserError
from virnucpro.calling.classifier_file import read_classifier
from virnucpro.calling.features import read_features
from virnucpro.checkpoints.torch_file import verify_archive
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.models.families import read_checkpoint, write_demo_checkpoint
from virnucpro.storage.tables import read_embeddings

TINY = Architecture(layers=1, embed_dim=8, heads=2)
PREFIX = "encoder.sentence_encoder."
TABLE, BIAS = "embed_tokens.weight", "layers.0.fc1.bias"
MEMORY = 200 << 20
"""Bytes of address space that reading a hostile file may add."""

Change = Callable[[dict[str, Any]], Any]


def doubled(times: int, start: Any = ()) -> Any:
    """A tuple of two of a tuple of two of ...: a few bytes each, and 2**times values."""
    for _ in range(times):
        start = (start, start)
    return start


def doubled_list(times: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(times):
        found = [found, found]
    return found


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "esm2_tiny.pt"
    write_checkpoint(path, TINY, regression=False)
    return path.read_bytes()


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert len(sentence) < 600
    return sentence


def setting(value: Any) -> Change:
    return lambda content: setattr(content["cfg"]["model"], "encoder_layers", value)


def settings(value: Any) -> Change:
    return lambda content: content["cfg"].update(model=value)


def put(name: str, value: Any) -> Change:
    return lambda content: content["model"].update({PREFIX + name: value})


def whole(value: Any) -> Change:
    return lambda _: value


def shadowed(name: str) -> Change:
    """A tensor on which a number hangs where a method should be."""

    def change(content: dict[str, Any]) -> None:
        tensor = content["model"][PREFIX + BIAS].float()[:5]
        setattr(tensor, name, 5)
        content["model"][PREFIX + BIAS] = tensor

    return change


class Call:
    """Pickles as a call of whatever it is given."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


CONTENTS: dict[str, tuple[Change, str]] = {
    "a tuple doubled sixty times": (setting(doubled(60)), "holds values within values that never end"),
    "the same in a namespace": (settings(argparse.Namespace(x=doubled(60))), "values within values"),
    "the same as all there is": (whole(doubled(60)), "values within values"),
    "the same in a set": (whole({"model": {}, "x": Call(set, [doubled(60)])}), "values within values"),
    "the same, counted": (whole({"model": {}, "x": Call(Counter, [doubled(60)])}), "values within values"),
    "a list doubled sixty times": (setting(doubled_list(60)), "its setting encoder_layers is ["),
    "the same in a mapping": (setting(OrderedDict(x=doubled_list(60))), "encoder_layers is <OrderedDict>"),
    "a number of 600 digits": (setting(10**600), "encoder_layers is <a whole number of 600 digits or about>"),
    "a megabyte of text": (setting("x" * 10**6), "encoder_layers is 'xxx"),
    "signs that steer a terminal": (
        setting("\x1b[2J\nERROR"),
        r"encoder_layers is '\\x1b[2J\\nERROR'".replace("\\\\", "\\"),
    ),
    "a tensor as a setting": (setting(torch.ones(3)), "encoder_layers is <Tensor>"),
    "settings that are a number": (settings(5), "its settings (cfg.model) are 5"),
    "settings that are a list": (settings([]), "its settings (cfg.model) are []"),
    "settings that are a text": (settings("x"), "its settings (cfg.model) are 'x'"),
    "an older model's, of tensors": (lambda c: {"args": argparse.Namespace(arch=torch.ones(1)), **c}, "<Tensor>"),
    "a name of a megabyte": (put("layers.0." + "x" * 10**6, torch.ones(1)), "that ESM-2 does not have"),
    "a name of signs": (put("layers.0.\x1b[2J\n", torch.ones(1)), r"layers.0.\x1b[2J\n' that ESM-2 does not have"),
    "a thousand and one layers": (put("layers.1000.fc1.bias", torch.ones(1)), "1001 layers"),
    "an expanded tensor": (put(BIAS, torch.zeros(1).expand(32)), "is expanded"),
    "a tensor of terabytes, expanded": (put(TABLE, torch.zeros(1).expand(33, 10**11)), "is expanded"),
    "a tensor over itself": (put(TABLE, torch.zeros(64).as_strided((33, 8), (1, 1))), "is expanded"),
    "a tensor of the meta device": (put(BIAS, torch.empty(32, device="meta")), "without numbers"),
    "a nested tensor": (put(TABLE, torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])), "nested"),
    "a sparse tensor": (put(TABLE, torch.eye(33, 8).to_sparse()), "sparse"),
    "a compressed tensor": (put(TABLE, torch.eye(33, 8).to_sparse_csr()), "sparse"),
    "a quantised tensor": (put(BIAS, torch.quantize_per_tensor(torch.ones(32), 0.1, 0, torch.qint8)), "quantised"),
    "complex numbers": (put(BIAS, torch.ones(32, dtype=torch.complex64)), "torch.complex64"),
    "whole numbers": (put(BIAS, torch.ones(32, dtype=torch.int64)), "torch.int64"),
    "truth values": (put(BIAS, torch.ones(32, dtype=torch.bool)), "torch.bool"),
    "eight bits": (put(BIAS, torch.ones(32).to(torch.float8_e4m3fn)), "torch.float8_e4m3fn"),
    "a table of one number": (put(TABLE, torch.tensor(1.0)), "its table of tokens has shape ()"),
    "a table of nothing": (put(TABLE, torch.zeros(33, 0)), "is no ESM-2: its tensors are of 0 embed_dim"),
    "a tensor with numbers for methods": (shadowed("numel"), "has shape (5,), not (32,)"),
    "the same for what reads it": (shadowed("detach"), "has shape (5,), not (32,)"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_contents_that_no_model_has(good: bytes, tmp_path: Path, kind: str) -> None:
    change, says = CONTENTS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load(io.BytesIO(good), weights_only=False)
        changed = change(content)
        torch.save(content if changed is None else changed, tmp_path / "esm2_x.pt")
    assert says in refused(lambda: read_checkpoint(tmp_path / "esm2_x.pt"))


# Archives


def records(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def pickled(*opcodes: bytes) -> bytes:
    return packed(("a/data.pkl", b"\x80\x02" + b"".join(opcodes) + b"."), ("a/version", b"3\n"))


def in_directory(data: bytes, which: int, offset: int, value: bytes) -> bytes:
    """The archive with something else at a place of one entry of its directory (APPNOTE.TXT, 4.3.12)."""
    place = -1
    for _ in range(which + 1):
        place = data.index(b"PK\x01\x02", place + 1)
    return data[: place + offset] + value + data[place + offset + len(value) :]


def second_over_third(data: bytes) -> bytes:
    first = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    return in_directory(data, 2, 42, data[first + 42 : first + 46])


BOMB = pickle.dumps(doubled(60), 2)[2:-1]
OLD = b"".join(pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))

ARCHIVES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a record twice": (lambda good: packed(*records(good).items(), *list(records(good).items())[:1]), "twice"),
    "records over each other": (second_over_third, "records of its archive lie over each other"),
    "a record of exabytes": (lambda good: in_directory(good, 0, 20, b"\xff\xff\xff\x7f" * 2), "over each other"),
    "a record that unpacks to gigabytes": (lambda good: in_directory(good, 0, 24, b"\xff\xff\xff\x7f"), "esm2_x.pt"),
    "a record beyond the end": (lambda good: in_directory(good, 0, 42, b"\xff\xff\xff\x7f"), "longer than the file"),
    "a directory of exabytes": (
        lambda good: good.replace(b"PK\x06\x06", b"PK\x06\x06" + b"\xff" * 52, 1),
        "no PyTorch checkpoint",
    ),
    "nothing but a directory": (lambda _: packed(), "no PyTorch checkpoint"),
    "a key that takes for ever": (lambda _: pickled(b"}", BOMB, b"Ns"), "values within values"),
    "the same in torch's old format": (lambda _: OLD + b"\x80\x02}" + BOMB + b"Ns.", "values within values"),
    "a key nested a million deep": (lambda _: pickled(b"})", b"\x85" * 10**6, b"Ns"), "values within values"),
    "a key of a thousand values, a million times": (
        lambda _: pickled(b"}", pickle.dumps(doubled(12), 2)[2:-1], b"r\xff\xff\0\0Ns", b"j\xff\xff\0\0Ns" * 10**6),
        "values within values",
    ),
    "lists within lists, a hundred thousand deep": (lambda _: pickled(b"]" * 100_000, b"a" * 99_999), "holds a list"),
    "an operation that torch does not know": (lambda _: pickled(b"\x95" + bytes(8)), "no PyTorch checkpoint"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_lie(good: bytes, tmp_path: Path, kind: str) -> None:
    change, says = ARCHIVES[kind]
    path = tmp_path / "esm2_x.pt"
    path.write_bytes(change(good))
    assert says in refused(lambda: read_checkpoint(path))
    assert [file.name for file in tmp_path.iterdir()] == ["esm2_x.pt"]


def test_names_that_lead_elsewhere_are_not_followed(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "below" / "esm2_x.pt"
    path.parent.mkdir()
    path.write_bytes(packed(*records(good).items(), ("../../evil", b"x"), (str(tmp_path / "evil"), b"x")))
    with suppress(UserError):  # torch refuses it today
        assert read_checkpoint(path).architecture == TINY
    verify_archive(path)
    assert [file.name for file in tmp_path.iterdir()] == ["below"]


def zeros(path: Path) -> None:
    """300 MB of zeros, compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data/0", "w") as record:
        for _ in range(300):
            record.write(bytes(1 << 20))


def nested_header(path: Path) -> None:
    text = b'{"a":[' + b"[]," * 8_000_000 + b"[]]}"
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def read_in_little_memory(paths: dict[str, Path], queue: Any) -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    found = {}
    for name, path in paths.items():
        try:
            read_checkpoint(path)
        except UserError as error:
            found[name] = str(error)
        except BaseException as error:
            found[name] = f"{type(error).__name__} {error}"
    queue.put(found)


def test_what_would_fill_the_memory_is_refused_before(good: bytes, tmp_path: Path) -> None:
    """In a process that may take 200 MB more than it has: each file here would take more."""
    paths = {name: tmp_path / f"{name}.pt" for name in ("zeros", "header", "config", "index", "doubled")}
    zeros(paths["zeros"])
    nested_header(paths["header"])
    for name in ("config", "index"):
        paths[name] = tmp_path / name
        paths[name].mkdir()
        (paths[name] / "pytorch_model.bin").write_bytes(good)
        (paths[name] / f"{name}.json").write_bytes(b'{"a":[' + b"[]," * 8_000_000 + b"[]]}")
    (paths["index"] / "pytorch_model.bin").unlink()
    (paths["index"] / "index.json").rename(paths["index"] / "model.safetensors.index.json")
    content = torch.load(io.BytesIO(good), weights_only=False)
    content["cfg"]["model"].encoder_layers = [doubled(14)] * 40_000
    torch.save(content, paths["doubled"])
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=read_in_little_memory, args=(paths, queue))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    found = queue.get()
    assert "would grow from" in found["zeros"]
    assert "no safetensors header" in found["header"]
    assert "config.json is larger than any configuration" in found["config"]
    assert "index.json is larger than any configuration" in found["index"]
    assert "values within values" in found["doubled"]


# Safetensors, config.json, the index


def safetensors(header: Any, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape: Any = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (safetensors({"a": entry(0, 8), "b": entry(4, 8)}), "header is damaged (tensor 'b')"),
        (safetensors({"a": entry(0, 8), "b": entry(0, 8)}), "header is damaged (tensor 'b')"),
        (safetensors({"a": entry(0, 8, [2**62, 2**62])}), "header is damaged (tensor 'a')"),
        (safetensors({"a": entry(0, 0, [0] * 65)}, b""), "header is damaged"),
        (safetensors({"a": entry(0, -8)}), "header is damaged"),
        (safetensors({"a": entry(0, 8, [2.0])}), "header is damaged"),
        (safetensors({"a\x1b[2J\n": entry(0, 9)}), r"(tensor 'a\x1b[2J\n')"),
        (safetensors({"a": entry(0, 8, dtype="X" * 10**6)}), "header is damaged (tensor 'a')"),
        (safetensors({"__metadata__": [], "a": entry(0, 8)}), "header is damaged"),
        (safetensors(b'{"a":' + b"[" * 10**6 + b"]" * 10**6 + b"}"), "header is damaged"),
        (safetensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}'), "is damaged"),
        (safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'), "header is damaged"),
        (safetensors(b"[]"), "header is damaged"),
        (safetensors({}, b""), "of a model that is not known here"),
        (struct.pack("<Q", 2**63) + b"{}", "no safetensors header"),
    ],
)
def test_safetensors_that_lie(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert says in refused(lambda: read_checkpoint(path))


DEEP = b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"
JSON: list[tuple[bytes, str]] = [
    (b"", "it is empty"),
    (b"{", "is damaged: it is not JSON"),
    (DEEP, "it is nested too deeply"),
    (b'{"a": 1, "\\u001b[2J": 2, "\\u001b[2J": 3}', r"it holds \x1b[2J twice"),
    (b'{"a": ' + b"9" * 5000 + b"}", "is damaged: it is not JSON"),
    (b"[]", "it holds no mapping"),
    (b"\xff\xfe{}", "is damaged"),
    (b"<html>", "it is a web page"),
]
CONFIGS: list[tuple[bytes, str]] = [
    (b'{"layer_norm_eps": NaN}', "layer_norm_eps in its config.json is nan"),
    (b'{"vocab_size": 1e400}', "vocab_size in its config.json is inf"),
    (b'{"num_hidden_layers": -5}', "setting num_hidden_layers is -5"),
    (b'{"num_attention_heads": 1' + b"0" * 4000 + b"}", "num_attention_heads is <a whole number of 4000 digits"),
    (b'{"num_attention_heads": true}', "num_attention_heads is True"),
    (b'{"hidden_size": [[[[[[[[1]]]]]]]]}', "hidden_size is [[[["),
    (b'{"model_type": "\\u001b[2J\\n"}', r"model_type in its config.json is '\x1b[2J\n'"),
    (b'{"is_folding_model": {"a": 1}}', "is ESMFold"),
]
INDICES: list[tuple[bytes, str]] = [
    (b'{"weight_map": {}}', "its weight_map does not name files"),
    (b'{"weight_map": {"a": 5}}', "does not name files"),
    (b'{"weight_map": {"a": "../x.safetensors"}}', "which is not in its folder"),
    (b'{"weight_map": {"a": "/etc/passwd"}}', "which is not in its folder"),
    (b'{"weight_map": {"a": "\\ud800"}}', "which is not in its folder"),
    (b'{"weight_map": {"a": "\\u0000"}}', "which is not in its folder"),
    (b'{"weight_map": {"a": "\\u001b[2J"}}', "which is not in its folder"),
    (b'{"weight_map": {"a": "' + b"x" * 5000 + b'"}}', "lacks 'xxx"),
    (b'{"weight_map": {"a": "config.json"}}', "config.json is no PyTorch checkpoint: it is JSON"),
    (b'{"weight_map": {"a": "model.safetensors.index.json"}}', "it is JSON"),
]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("config.json", *case) for case in (*JSON, *CONFIGS)]
    + [("model.safetensors.index.json", *case) for case in (*JSON, *INDICES)],
)
def test_configurations_and_indices_that_lie(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    if name == "config.json":
        state = {f"esm.{key}": tensor for key, tensor in huggingface_state().items()}
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    assert says in refused(lambda: read_checkpoint(tmp_path))


def huggingface_state() -> dict[str, torch.Tensor]:
    return {
        "embeddings.word_embeddings.weight": torch.ones(33, 8),
        "encoder.layer.0.attention.LayerNorm.weight": torch.ones(8),
    }


# Code


def gadgets(mark: Path) -> dict[str, Any]:
    """Objects whose unpickling by Python's own reader would leave a mark."""
    text = f"open({str(mark)!r}, 'w').close()"
    return {
        "os.system": Call(__import__("os").system, f"touch {mark}"),
        "eval": Call(eval, text),
        "exec": Call(exec, text),
        "open": Call(open, str(mark), "w"),
        "torch.hub.load": Call(torch.hub.load, str(mark.parent), "model"),
        "torch.load": Call(torch.load, str(mark)),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "numpy": Call(np.memmap, str(mark), "uint8", "w+", 0, (1,)),
        "copyreg": Call(copyreg._reconstructor, io.FileIO, object, None),  # type: ignore[attr-defined]
    }


def by_esm(path: Path) -> None:
    read_checkpoint(path.rename(path.with_name("esm2_x.pt")))


def in_folder(path: Path) -> None:
    path.rename(path.with_name("pytorch_model.bin"))
    read_checkpoint(path.parent)


def as_shard(path: Path) -> None:
    path.rename(path.with_name("pytorch_model-00002-of-00002.bin"))
    torch.save({"a": torch.ones(3)}, path.with_name("pytorch_model-00001-of-00002.bin"))
    read_checkpoint(path.parent)


def beside_dnabert(path: Path) -> None:
    write_demo_checkpoint("dnabert_s_demo", path.parent)
    in_folder(path)


def by_table(path: Path) -> None:
    path.rename(path.with_name("output_1_ESM.pt"))
    read_embeddings(path.parent)


READERS: dict[str, tuple[Callable[[Path], object], Callable[[Any], Any]]] = {
    "fair-esm's layout": (by_esm, lambda bad: {"cfg": {"model": argparse.Namespace(x=bad)}, "model": {}}),
    "a state dict": (by_esm, lambda bad: {"embed_tokens.weight": torch.ones(33, 8), "x": bad}),
    "a folder": (in_folder, lambda bad: {"a": torch.ones(3), "b": bad}),
    "a shard": (as_shard, lambda bad: OrderedDict(b=bad)),
    "DNABERT-S": (beside_dnabert, lambda bad: {"encoder.layer.0.attention.self.Wqkv.weight": bad}),
    "a classifier": (lambda path: read_classifier(path, 300), lambda bad: {"hidden_layer.weight": bad}),
    "features": (read_features, lambda bad: {"ids": ["a"], "data": bad}),
    "a table": (by_table, lambda bad: {"proteins": ["a"], "data": [bad]}),
}


@pytest.mark.parametrize("reader", READERS)
def test_no_file_runs_code(tmp_path: Path, reader: str) -> None:
    read, around = READERS[reader]
    for number, (name, gadget) in enumerate(gadgets(tmp_path / "mark").items()):
        for is_zip in (True, False):
            folder = tmp_path / f"{number}{is_zip}"
            folder.mkdir()
            torch.save(around(gadget), folder / "x.pt", _use_new_zipfile_serialization=is_zip)
            sentence = refused(lambda folder=folder: read(folder / "x.pt"))  # type: ignore[misc]
            assert "could run foreign code" in sentence or "no archive of torch's" in sentence, name
    assert not (tmp_path / "mark").exists()


def test_these_files_would_have_run_code(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name in ("os.system", "eval", "exec", "open", "numpy"):
        pickle.loads(pickle.dumps(gadgets(mark)[name], 2))
        assert mark.exists(), name
        mark.unlink()


# Features and tables


def row(label: Any = "a", vector: Any = (0.5, 1.0)) -> dict[str, Any]:
    return {"label": label, "mean_representation": list(vector) if isinstance(vector, tuple) else vector}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"ids": ["a"], "data": torch.zeros(1).expand(1, 10**12)}, "is expanded"),
        ({"proteins": ["a"], "data": [torch.zeros(1).expand(10**12)]}, "is expanded"),
        ({"proteins": ["a"], "data": [torch.empty(10**12, device="meta")]}, "without numbers"),
        ({"proteins": [str(n) for n in range(10**4)], "data": [torch.ones(10**4)] * 10**4}, "repeated without end"),
        ({"nucleotide": [str(n) for n in range(9999)], "data": None}, "no list of rows"),
        ({"nucleotide": ["a"], "data": [row(vector=doubled_list(60))]}, "no numbers"),
        ({"nucleotide": ["a"], "data": [row(label=doubled_list(60))]}, "is labelled [["),
        ({"nucleotide": ["a"], "data": [row(vector=(10**300,))]}, "no numbers"),
        ({"nucleotide": ["a"], "data": [5]}, "no numbers"),
        ({"ids": [doubled_list(60)], "data": [torch.ones(3)]}, "its ids are no list of names"),
        ({"ids": 5, "data": 5}, "its ids are no list of names"),
    ],
)
def test_features_that_lie(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "output_1.pt")
    assert says in refused(lambda: read_features(tmp_path / "output_1.pt"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"proteins": ["a"], "data": [torch.zeros(1).expand(10**12)]}, "is expanded"),
        ({"proteins": [str(n) for n in range(10**4)], "data": [torch.ones(10**4)] * 10**4}, "repeat the same numbers"),
        ({"proteins": ["a"], "data": [doubled_list(60)]}, "is no tensor"),
        ({"proteins": [doubled_list(60)], "data": [torch.ones(3)]}, "does not hold ids and vectors"),
        ([], "does not hold ids and vectors"),
    ],
)
def test_tables_that_lie(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "output_1_ESM.pt")
    assert says in refused(lambda: read_embeddings(tmp_path))
