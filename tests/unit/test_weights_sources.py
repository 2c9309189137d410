"""Where weights come from: folders, shards, the hub and its cache, adapters; the same weights give the same bits."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.unit.huggingface_cases import SMALL, cache, state_of, write_adapter, write_folder
from virnucpro import embed, read_embeddings
from virnucpro.base.digest import FileDigests
from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record
from virnucpro.checkpoints.hub import HubId
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.models.reference import ModelRef, planning_architecture, planning_parameters
from virnucpro.storage.report_record import SampleReport
from virnucpro.weights.manifest import WeightsManifest, WeightsRequest
from virnucpro.weights.prepare import prepare_weights

QUERY = "esm.encoder.layer.1.attention.self.query"
REPOSITORY = "lab/esm2-tuned"


def silent(_: str) -> None:
    pass


def prepared(model: str | Path | ModelRef, folder: Path, log: Callable[[str], None] = silent) -> WeightsManifest:
    """Prepare weights as a run does, and see that they count as current then."""
    reference = ModelRef.of(model)
    wanted = WeightsRequest.of(reference, folder, FileDigests())
    manifest = prepare_weights(reference, wanted.file, digests=wanted.digests, log=log)
    assert wanted.prepared() is not None
    again = WeightsRequest.of(ModelRef.of(*reference.given), folder, FileDigests())  # as its job gets it
    assert again == wanted
    return manifest


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


def test_the_same_weights_in_every_layout_are_the_same_bits(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "fair.pt", SMALL, seed=3)
    state = state_of(SMALL, seed=3)
    bare = {name.removeprefix("esm."): tensor for name, tensor in state.items()}
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, tmp_path / "lightning.ckpt")
    torch.save({f"module.{name}": tensor for name, tensor in bare.items()}, tmp_path / "bare.bin")
    models = {
        "fair-esm": tmp_path / "fair.pt",
        "folder": write_folder(tmp_path / "folder", state=state),
        "shards": write_folder(tmp_path / "shards", state=state, shards=3),
        "pickled shards": write_folder(tmp_path / "pickled", state=bare, shards=2, pickled=True),
        "one file": tmp_path / "folder" / "model.safetensors",
        "index": tmp_path / "shards" / "model.safetensors.index.json",
        "lightning": tmp_path / "lightning.ckpt",
        "without settings": tmp_path / "bare.bin",
        "double": write_folder(tmp_path / "double", state={name: tensor.double() for name, tensor in state.items()}),
    }
    found = {kind: prepared(path, tmp_path / "weights") for kind, path in models.items()}
    assert len({manifest.sha256 for manifest in found.values()}) == 1
    assert found["double"].dtype == "float32"
    assert found["folder"].model.startswith("folder-")
    assert found["one file"].model == found["folder"].model  # the file is called as in every folder
    assert found["shards"].source.count("sha256") == 5  # three shards, the index, the configuration


def test_a_note_is_logged_and_the_rounded_frequencies_are_taken(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in state_of(SMALL).items() if "inv_freq" not in name}
    lines: list[str] = []
    prepared(write_folder(tmp_path / "m", state=state), tmp_path, lines.append)
    assert any("no rotary frequencies (inv_freq)" in line for line in lines)
    (weights,) = tmp_path.glob("m-*.safetensors")
    found = load_file(weights)["layers.1.self_attn.rot_emb.inv_freq"]
    exact = 1 / 10000 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    assert torch.equal(found, exact.half().float())


def test_any_file_of_a_folder_that_changes_makes_the_weights_stale(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", shards=2)
    prepared(folder, tmp_path)
    for name in ("config.json", "model-00002-of-00002.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        wanted = WeightsRequest.of(ModelRef.of(folder), tmp_path, FileDigests())
        assert wanted.prepared() is None
        (folder / name).write_bytes(content)
    assert planning_parameters(ModelRef.of(folder)) > 10_000


def test_a_repository_in_the_hubs_cache_needs_neither_network_nor_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    snapshot = write_folder(cache(tmp_path / "home" / "hub", REPOSITORY))
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    for file in list(snapshot.iterdir()):  # as the hub's library keeps them
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        file.symlink_to(Path("..", "..", "blobs", blob.name))
    models = (REPOSITORY, snapshot, snapshot.parents[1], f"{REPOSITORY}@{'c' * 40}")
    found = [prepared(model, tmp_path) for model in models]
    assert len({manifest.sha256 for manifest in found}) == 1
    assert found[0].model == "lab--esm2-tuned"
    assert found[0].source.startswith(f"{REPOSITORY}@{'c' * 40}: model.safetensors (sha256 ")
    assert found[1].model.startswith("lab--esm2-tuned-")
    assert found[3].model.startswith("lab--esm2-tuned--")
    blob = (snapshot / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-4] + b"abcd")
    text = refused(lambda: prepare_weights(REPOSITORY, tmp_path / "w", log=silent))
    assert f"delete {blob}" in text
    (snapshot / "model.safetensors").unlink()
    text = refused(lambda: prepare_weights(REPOSITORY, tmp_path / "w", log=silent))
    assert "pip install 'virnucpro[hub]'" in text


def test_a_released_model_is_taken_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    write_folder(cache(tmp_path / "hub", "facebook/esm2_t6_8M_UR50D"))
    text = refused(lambda: prepare_weights("esm2_t6_8M_UR50D", tmp_path / "w", log=silent))
    assert "is not esm2_t6_8M_UR50D: it has Architecture(layers=2" in text  # it was read, and is another model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("facebook/esm2_t6_8M_UR50D", HubId("facebook/esm2_t6_8M_UR50D")),
        ("lab/x@refs/pr/3", HubId("lab/x", "refs/pr/3")),
        ("lab/x.y-z@v1", HubId("lab/x.y-z", "v1")),
        *((text, None) for text in ("x", "a/b/c", "a/b.pt", "a/b.safetensors", "../b", "a/..", "/a/b", "~/b", "a/b@")),
        ("a/" + "b" * 200, None),
    ],
)
def test_what_is_a_repositorys_id(text: str, expected: HubId | None) -> None:
    assert HubId.of(text) == expected


def test_names_of_ids_differ_and_tell_the_sizes() -> None:
    ids = ["a/b", "a/b@v1", "a/b@v2", "a/c", "b/b"]
    assert len({HubId.of(text).file_name for text in ids if HubId.of(text)}) == len(ids)  # type: ignore[union-attr]
    assert planning_architecture(ModelRef.of("facebook/esm2_t6_8M_UR50D@main")).layers == 6


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for: a repository's files and their metadata."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - set by the test
    commit = "d" * 40
    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Authorization', '')}")
        name = self.path.partition("?")[0].rpartition("/")[2]
        if self.path.startswith(f"/api/models/{REPOSITORY}"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            body = json.dumps({"id": REPOSITORY, "sha": self.commit, "siblings": siblings, "private": False}).encode()
            self.answer(200, body, {"Content-Type": "application/json"})
        elif self.path.startswith(f"/{REPOSITORY}/resolve/") and name in self.files:
            digest = hashlib.sha256(self.files[name]).hexdigest()
            self.answer(200, self.files[name], {"ETag": f'"{digest}"', "X-Repo-Commit": self.commit})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    # The library reads its variables when it is imported, once a process; a user sets them before.
    for name, value in {
        "ENDPOINT": address,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    Hub.asked.clear()
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_repository_is_downloaded_once_by_the_hubs_library(tmp_path: Path, hub: type[Hub]) -> None:
    folder = write_folder(tmp_path / "there", shards=2)
    hub.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    hub.files |= {"tf_model.h5": b"large", "README.md": b"#"}
    lines: list[str] = []
    manifest = prepared(REPOSITORY, tmp_path, lines.append)
    assert manifest.sha256 == prepared(folder, tmp_path).sha256
    assert manifest.source.startswith(f"{REPOSITORY}@{hub.commit}: ")
    assert any("downloading config.json, model-00001-of-00002.safetensors, " in line for line in lines)
    assert not any("tf_model" in line or "README" in line for line in hub.asked)
    assert any("hf_secret" in line for line in hub.asked)
    asked = len(hub.asked)
    prepared(REPOSITORY, tmp_path / "again")
    assert len(hub.asked) == asked
    assert not any("hf_secret" in line for line in lines)
    text = refused(lambda: prepare_weights("lab/none", tmp_path / "w", log=silent))
    assert "neither such a path here nor such a repository on the hub" in text
    adapter = write_adapter(tmp_path / "adapter", lora())
    hub.files |= {file.name: file.read_bytes() for file in adapter.iterdir()}
    adapted = prepared(ModelRef.of(folder, f"{REPOSITORY}@tuned"), tmp_path)
    assert f"with adapter {REPOSITORY}@{hub.commit}: adapter_model.safetensors" in adapted.source
    assert adapted.sha256 == prepared(ModelRef.of(folder, adapter), tmp_path).sha256
    hub.files = {"tf_model.h5": b"large"}
    text = refused(lambda: prepare_weights(f"{REPOSITORY}@v2", tmp_path / "w", log=silent))
    assert "holds no checkpoint of PyTorch or safetensors: 'tf_model.h5' is there" in text


def test_offline_and_not_cached_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    text = refused(lambda: prepare_weights(REPOSITORY, tmp_path / "w", log=silent))
    assert f"cannot get {REPOSITORY} from the hub, and no path here is called so" in text
    assert "HF_HUB_OFFLINE" in text


# Adapters. Compared with peft itself in test_transformers.py; here with the formula, where peft is not installed.


def lora(module: str = QUERY, rank: int = 4, width: int = 32, out: int = 32, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, width, generator=generator),
        f"{module}.lora_B.weight": torch.randn(out, rank, generator=generator),
    }


def with_adapter(tmp_path: Path, tensors: dict[str, Tensor], **config: Any) -> dict[str, Tensor]:
    """The prepared weights of a base and an adapter."""
    base = write_folder(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", tensors, **config)
    manifest = prepared(ModelRef.of(base, adapter), tmp_path / "weights")
    assert manifest.adapter_sha256
    assert " with adapter adapter_model.safetensors (sha256 " in manifest.source
    assert "+" in manifest.model
    return load_file(tmp_path / "weights" / f"{manifest.model}.safetensors")


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 8 / 4),
        ({"use_rslora": True}, 8 / 2),
        ({"alpha_pattern": {"layer.1.attention.self.query": 2}}, 2 / 4),
        ({"alpha_pattern": {r"encoder\.layer\.[01]\.attention.self.query": 3}}, 3 / 4),
        ({"alpha_pattern": {"key": 3}, "rank_pattern": {"query": 4}, "r": 16}, 8 / 4),
    ],
)
def test_an_adapter_is_merged_in_float32(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    parts = lora()
    found = with_adapter(tmp_path, {**parts, "classifier.dense.weight": torch.zeros(32, 32)}, **config)
    name = "layers.1.self_attn.q_proj.weight"
    base = state_of(SMALL)[f"{QUERY}.weight"]
    expected = base + scale * parts[f"{QUERY}.lora_B.weight"] @ parts[f"{QUERY}.lora_A.weight"]
    assert torch.allclose(found[name], expected, atol=1e-5)
    other = "esm.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(found["layers.0.self_attn.q_proj.weight"], state_of(SMALL)[other])


def test_an_adapter_of_half_precision_on_a_base_of_half_precision(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", state={name: tensor.half() for name, tensor in state_of(SMALL).items()})
    parts = {name: tensor.half() for name, tensor in lora("encoder.layer.1.attention.self.query").items()}
    prepared(ModelRef.of(base, write_adapter(tmp_path / "adapter", parts)), tmp_path)
    (weights,) = tmp_path.glob("base-*+*.safetensors")
    found = load_file(weights)
    assert {str(tensor.dtype) for tensor in found.values()} == {"torch.float16", "torch.float32"}
    assert found["layers.1.self_attn.q_proj.weight"].dtype == torch.float32
    a, b = (parts[f"encoder.layer.1.attention.self.query.lora_{kind}.weight"].float() for kind in "AB")
    expected = state_of(SMALL)[f"{QUERY}.weight"].half().float() + 2 * b @ a
    assert torch.allclose(found["layers.1.self_attn.q_proj.weight"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        ({}, {"peft_type": "IA3"}, "of the kind 'IA3'"),
        (
            lora("esm.encoder.layer.7.attention.self.query"),
            {},
            "another model: 'base_model.model.esm.encoder.layer.7",
        ),
        (lora("bert.encoder.layer.0.attention.self.qkv"), {}, "would not be used"),
        ({"classifier.weight": torch.zeros(2, 2)}, {}, "it holds nothing but heads"),
        (lora(width=16), {}, "does not fit (32, 32)"),
        ({f"{QUERY}.lora_A.weight": torch.zeros(4, 32)}, {}, "does not fit"),
        ({f"{QUERY}.lora_B.weight": torch.zeros(32, 4)}, {}, "lacks the matrix A"),
        (lora(), {"lora_alpha": "many"}, "lora_alpha is 'many'"),
        (lora(), {"lora_alpha": float("inf")}, "lora_alpha is inf"),
        (lora(), {"alpha_pattern": {"(a+)+": 3}}, "alpha_pattern is not read"),
        (lora(), {"alpha_pattern": {"[": 3}}, "in its alpha_pattern is none"),
        (lora(), {"alpha_pattern": 3}, "alpha_pattern is 3"),
        (lora(), {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        (lora(), {"alora_invocation_tokens": [3]}, "alora_invocation_tokens, which is not merged here"),
        (lora(), {"use_qalora": True}, "use_qalora, which is not merged here"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], config: dict[str, Any], says: str
) -> None:
    text = refused(lambda: with_adapter(tmp_path, tensors or lora(), **config))
    assert says in text, text


def test_adapters_that_are_not_there_or_stand_alone(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", lora())
    for give, says in [
        (lambda: ModelRef.of(base, tmp_path / "none"), "does not exist"),
        (lambda: ModelRef.of(base, base), "lacks adapter_model.safetensors"),
        (lambda: ModelRef.of(base, adapter / "adapter_model.safetensors"), "give the folder with adapter_config.json"),
        (lambda: ModelRef.of(adapter), "of 'facebook/esm2_t6_8M_UR50D' without its base model: set `model:`"),
    ]:
        assert says in refused(give)


def test_an_adapter_of_a_released_name_is_part_of_the_identity(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora("esm.encoder.layer.1.attention.self.query", width=32))
    names = set()
    for _ in range(2):
        model = ModelRef.of("esm2_demo", adapter)
        names.add(WeightsRequest.of(model, tmp_path, FileDigests()).model)
        (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 9}))
    assert len(names) == 2
    assert all(name.startswith("esm2_demo+") for name in names)


def test_tables_are_the_same_bits_and_say_what_they_are_of(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "fair.pt", SMALL, seed=3)
    folder = write_folder(tmp_path / "folder", state=state_of(SMALL, seed=3), shards=2)
    adapter = write_adapter(tmp_path / "adapter", lora())
    (tmp_path / "a.faa").write_text(">a\nMKVLAA\n>b\nMKV\n")
    found, sources = [], []
    for name, model, adapted in (("1", tmp_path / "fair.pt", "none"), ("2", folder, "none"), ("3", folder, adapter)):
        table = embed(tmp_path / "a.faa", tmp_path / name, model=model, adapter=adapted, devices=["cpu"])
        found.append(read_embeddings(table))
        sources.append(read_record(tmp_path / name / "embeddings.json", SampleReport).provenance.source)
    ids, vectors = zip(*found, strict=True)
    assert list(ids[0]) == list(ids[1]) == ["a", "b"]
    assert np.array_equal(vectors[0], vectors[1])
    assert not np.allclose(vectors[1], vectors[2], atol=1e-3)
    assert [source.count("sha256") for source in sources] == [1, 4, 6]
