"""Downloads against a real server that breaks off, refuses Range, changes its file, stalls or is not there."""

from __future__ import annotations

import fcntl
import http.server
import json
import multiprocessing
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from virnucpro.base.errors import UserError
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.weights.download import DownloadError, download
from virnucpro.weights.prepare import cached_checkpoint, locate_checkpoint

SMALL = Architecture(layers=2, embed_dim=64, heads=4)


@dataclass
class Behaviour:
    """What the server does; a test changes it while it runs."""

    content: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    honours_if_range: bool = True
    tells_size: bool = True
    breaks: list[int] = field(default_factory=list)  # bytes sent before breaking off, an answer each
    status: list[int] = field(default_factory=list)  # error answers that come first
    stall: bool = False
    requests: list[str | None] = field(default_factory=list)  # the Range headers that came


@dataclass
class Server:
    url: str
    behaviour: Behaviour


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    path = tmp_path / "published" / "esm2_small.pt"
    write_checkpoint(path, SMALL, regression=False)
    behaviour = Behaviour(path.read_bytes())
    closing = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            behaviour.requests.append(wanted)
            if behaviour.status:
                self.send_error(behaviour.status.pop(0))
                return
            if behaviour.stall:
                closing.wait(30)
                return
            whole, start = behaviour.content, 0
            condition = self.headers.get("If-Range")
            if wanted and behaviour.ranges and (condition in (None, behaviour.etag) or not behaviour.honours_if_range):
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(whole):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(whole)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            else:
                self.send_response(200)
            if behaviour.etag:
                self.send_header("ETag", behaviour.etag)
            if behaviour.tells_size:
                self.send_header("Content-Length", str(len(whole) - start))
            else:
                self.send_header("Connection", "close")
            self.end_headers()
            stop = behaviour.breaks.pop(0) if behaviour.breaks else len(whole)
            self.wfile.write(whole[start : start + stop])
            self.wfile.flush()
            if stop < len(whole) - start or not behaviour.tells_size:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield Server(f"http://127.0.0.1:{listening.server_port}/esm2_small.pt", behaviour)
        closing.set()
        listening.shutdown()


def get(server: Server, target: Path, **options: Any) -> list[str]:
    lines: list[str] = []
    download(server.url, target, lines.append, **{"pause": 0.01, **options})
    assert target.read_bytes() == server.behaviour.content
    assert [path.name for path in target.parent.iterdir()] == [target.name]  # nothing is left beside it
    return lines


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "checkpoints" / "esm2_small.pt"


def test_whole_at_once(server: Server, target: Path) -> None:
    lines = get(server, target)
    assert re.fullmatch(r"esm2_small\.pt: 100 % of [\d.]+ MB, [\d.]+ MB/s, 0 s left", lines[-1])


def test_a_break_goes_on_where_it_was(server: Server, target: Path) -> None:
    server.behaviour.breaks = [100_000, 50_000]
    lines = get(server, target)
    assert server.behaviour.requests == [None, "bytes=100000-", "bytes=150000-"]
    assert any("broke after" in line for line in lines)


def test_the_next_call_goes_on_too(server: Server, target: Path) -> None:
    server.behaviour.breaks = [100_000]
    with pytest.raises(DownloadError, match="1 times in a row"):
        get(server, target, attempts=1)
    assert not target.exists()
    get(server, target)
    assert server.behaviour.requests == [None, "bytes=100000-"]


def test_breaks_that_bring_something_never_wear_out_the_patience(server: Server, target: Path) -> None:
    server.behaviour.breaks = [20_000] * 12
    get(server, target, attempts=2)


def test_breaks_that_bring_nothing_do(server: Server, target: Path) -> None:
    server.behaviour.breaks = [1000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match="3 times in a row"):
        get(server, target, attempts=3)
    assert len(server.behaviour.requests) == 3


def test_a_server_without_range_starts_from_the_beginning(server: Server, target: Path) -> None:
    server.behaviour.ranges = False
    server.behaviour.breaks = [100_000]
    get(server, target)
    assert server.behaviour.requests == [None, "bytes=100000-"]


@pytest.mark.parametrize("honours", [True, False])
def test_another_file_is_not_continued(server: Server, target: Path, tmp_path: Path, honours: bool) -> None:
    server.behaviour.breaks = [100_000]
    server.behaviour.honours_if_range = honours
    with pytest.raises(DownloadError):
        get(server, target, attempts=1)
    write_checkpoint(tmp_path / "new" / "esm2_small.pt", SMALL, seed=9, regression=False)
    server.behaviour.content = (tmp_path / "new" / "esm2_small.pt").read_bytes()
    server.behaviour.etag = '"two"'
    get(server, target)


def test_another_size_under_the_same_etag_is_not_continued(server: Server, target: Path, tmp_path: Path) -> None:
    server.behaviour.etag = None
    server.behaviour.breaks = [100_000]
    with pytest.raises(DownloadError):
        get(server, target, attempts=1)
    write_checkpoint(tmp_path / "new" / "esm2_small.pt", Architecture(3, 64, 4), regression=False)
    server.behaviour.content = (tmp_path / "new" / "esm2_small.pt").read_bytes()
    get(server, target)


def test_everything_had_come_but_the_rename(server: Server, target: Path) -> None:
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(server.behaviour.content)
    notes = {"url": server.url, "validator": '"one"', "size": len(server.behaviour.content)}
    target.with_name(target.name + ".part.json").write_text(json.dumps(notes))
    get(server, target)
    assert server.behaviour.requests == [f"bytes={len(server.behaviour.content)}-"]


@pytest.mark.parametrize("notes", ["", "{", "[]", '{"url": "http://elsewhere", "validator": null, "size": 5}'])
def test_a_part_of_unknown_origin_is_not_built_upon(server: Server, target: Path, notes: str) -> None:
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"something else")
    if notes:
        target.with_name(target.name + ".part.json").write_text(notes)
    get(server, target)
    assert server.behaviour.requests == [None]


def test_a_server_that_tells_no_size(server: Server, target: Path) -> None:
    server.behaviour.tells_size = False
    get(server, target)


def test_a_server_that_tells_no_size_and_breaks_is_noticed(server: Server, target: Path) -> None:
    server.behaviour.tells_size = False
    server.behaviour.breaks = [100_000]
    with pytest.raises(DownloadError, match="no checkpoint"):
        get(server, target)
    assert not list(target.parent.iterdir())


def test_errors_that_pass_are_waited_for(server: Server, target: Path) -> None:
    server.behaviour.status = [503, 429]
    get(server, target)


def test_errors_that_stay_end_at_once(server: Server, target: Path) -> None:
    server.behaviour.status = [404] * 3
    with pytest.raises(DownloadError, match="404"):
        get(server, target)
    assert len(server.behaviour.requests) == 1


def test_a_login_page_is_not_kept(server: Server, target: Path) -> None:
    server.behaviour.content = b"<html>please log in</html>" * 100
    with pytest.raises(DownloadError, match="no checkpoint"):
        get(server, target)
    assert not list(target.parent.iterdir())


def test_a_silent_server_fails_in_time(server: Server, target: Path) -> None:
    server.behaviour.stall = True
    began = time.monotonic()
    with pytest.raises(DownloadError, match="no answer within 1 s"):
        get(server, target, timeout=1.0)
    assert time.monotonic() - began < 30


def test_a_full_disk_is_told_before(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DownloadError, match="are to come"):
        get(server, target)


def fetch(url: str, target: Path, report: Path) -> None:
    def log(line: str) -> None:
        with report.open("a") as file:
            print(line, file=file)

    download(url, target, log)


def test_of_two_processes_one_downloads(server: Server, target: Path, tmp_path: Path) -> None:
    reports = [tmp_path / f"report{i}" for i in range(3)]
    target.parent.mkdir(parents=True)
    with target.with_name(target.name + ".part").open("a+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        context = multiprocessing.get_context("spawn")  # a fork would inherit the lock
        processes = [context.Process(target=fetch, args=(server.url, target, report)) for report in reports]
        for process in processes:
            process.start()
        until = time.monotonic() + 300  # each has to start and to import torch
        while not all(report.exists() for report in reports) and time.monotonic() < until:
            time.sleep(0.1)
        assert not target.exists()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert len(server.behaviour.requests) == 1
    assert target.read_bytes() == server.behaviour.content
    assert all("waiting" in report.read_text() for report in reports)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_into_torch_hubs_cache_and_found_there(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    name = "esm2_t6_8M_UR50D"
    lines: list[str] = []
    expected = tmp_path / "torch" / "hub" / "checkpoints" / f"{name}.pt"
    for _ in range(2):
        assert locate_checkpoint(name, lines.append, url=server.url) == expected == cached_checkpoint(name)
    assert len(server.behaviour.requests) == 1
    assert "found" in lines[-1]


def test_without_network_one_sentence_says_which_file_goes_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/{{name}}.pt"
        began = time.monotonic()
        with pytest.raises(UserError) as caught:
            locate_checkpoint("esm2_t36_3B_UR50D", print, url=url)
    message = str(caught.value)
    assert time.monotonic() - began < 60
    assert url.format(name="esm2_t36_3B_UR50D") in message
    assert str(tmp_path / "torch/hub/checkpoints/esm2_t36_3B_UR50D.pt") in message
    assert "`model:`" in message
    assert "\n" not in message
    assert not list((tmp_path / "torch/hub/checkpoints").iterdir())


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    (tmp_path / "torch").write_text("a file, not a folder")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(UserError, match="cannot write"):
        locate_checkpoint("esm2_t6_8M_UR50D", print, url=server.url)
