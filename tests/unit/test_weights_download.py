"""Downloads against a real server that breaks off, refuses Range, changes its file, stalls, lies or is not there."""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import itertools
import json
import multiprocessing
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from virnucpro.base.digest import FileProof
from virnucpro.base.errors import UserError
from virnucpro.checkpoints.torch_file import verify_archive
from virnucpro.models.esm2.checkpoint import read_checkpoint
from virnucpro.models.esm2.sizes import ESM2_MODELS, Architecture
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.models.reference import RELEASED
from virnucpro.weights.connection import DownloadError, next_place
from virnucpro.weights.download import Expected, download
from virnucpro.weights.locate import cached_checkpoint, locate_checkpoint

SMALL = Architecture(layers=2, embed_dim=64, heads=4)


def check_small(path: Path) -> None:
    assert read_checkpoint(path).architecture.embed_dim == SMALL.embed_dim
    verify_archive(path)


ANY = Expected(check_small)


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
    says: Callable[[bytes], Iterable[bytes]] | None = None  # what is sent instead of HTTP that is right
    requests: list[str | None] = field(default_factory=list)  # the Range headers that came


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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
            if behaviour.says is not None:
                self.close_connection = True
                with suppress(OSError):
                    for piece in behaviour.says(behaviour.content):
                        self.wfile.write(piece)
                        if closing.is_set():
                            return
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
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield Server(f"http://127.0.0.1:{listening.server_port}/esm2_small.pt", behaviour)
        closing.set()
        listening.shutdown()


def get(server: Server, target: Path, **options: Any) -> list[str]:
    lines: list[str] = []
    download(server.url, target, lines.append, ANY, **{"pause": 0.01, **options})
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
    with pytest.raises(DownloadError, match="1 times without progress"):
        get(server, target, attempts=1)
    assert not target.exists()
    get(server, target)
    assert server.behaviour.requests == [None, "bytes=100000-"]


def test_breaks_that_bring_something_never_wear_out_the_patience(server: Server, target: Path) -> None:
    server.behaviour.breaks = [20_000] * 12
    get(server, target, attempts=2)


def test_breaks_that_bring_nothing_do(server: Server, target: Path) -> None:
    server.behaviour.breaks = [1000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match="3 times without progress"):
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
    with pytest.raises(DownloadError, match="cut short or damaged"):
        get(server, target)
    assert not list(target.parent.iterdir())
    server.behaviour.breaks = [100_000]  # where the size is known beforehand, the rest is asked for
    expected = Expected(check_small, FileProof(len(server.behaviour.content), sha256(server.behaviour.content)))
    download(server.url, target, print, expected, pause=0.01)
    assert target.read_bytes() == server.behaviour.content


def test_errors_that_pass_are_waited_for(server: Server, target: Path) -> None:
    server.behaviour.status = [503, 429]
    get(server, target)


def test_errors_that_stay_end_at_once(server: Server, target: Path) -> None:
    server.behaviour.status = [404] * 3
    with pytest.raises(DownloadError, match="404"):
        get(server, target)
    assert len(server.behaviour.requests) == 1


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *lines, "", "")).encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def body(data: bytes, *lines: str) -> Callable[[bytes], list[bytes]]:
    return lambda _: [head(f"Content-Length: {len(data)}", *lines), data]


def redirect(place: str) -> Callable[[bytes], list[bytes]]:
    return lambda _: [head(f"Location: {place}", "Content-Length: 0", status="302 Found")]


def only(*pieces: bytes) -> Callable[[bytes], list[bytes]]:
    return lambda _: list(pieces)


def slowly(start: bytes, drop: bytes) -> Callable[[bytes], Iterator[bytes]]:
    """Something every 20 ms without end: never silent, and never done."""

    def drip(_: bytes) -> Iterator[bytes]:
        yield start
        while True:
            time.sleep(0.02)
            yield drop

    return drip


HOSTILE: dict[str, tuple[Callable[[bytes], Iterable[bytes]], str]] = {
    "cut, and no ranges": (lambda whole: [head(f"Content-Length: {len(whole)}"), whole[:100_000]], "3 times without"),
    "204": (only(head(status="204 No Content")), "answers 204 No Content, without a file"),
    "201": (only(head("Content-Length: 1", status="201 Created"), b"x"), "answers 201 Created"),
    "300": (only(head(status="300 Multiple\x1b[31m Choices")), r"answers 300 Multiple\\x1b\[31m Choices"),
    "empty": (only(head("Content-Length: 0")), "sends an empty file"),
    "empty, by its end": (only(head("Connection: close")), "sends an empty file"),
    "redirect to ftp": (redirect("ftp://127.0.0.1/x.pt"), "redirects to 'ftp://127.0.0.1/x.pt', which is no address"),
    "redirect to a file": (redirect("file:///etc/passwd"), "redirects to 'file:///etc/passwd'"),
    "redirect to data": (redirect("data:,x"), "redirects to 'data:,x'"),
    "redirect to nonsense": (redirect("http://[::1"), r"redirects to 'http://\[::1'"),
    "redirect to a port that is none": (redirect("http://127.0.0.1:99999/"), "redirects to"),
    "redirect to no host": (redirect("http://:80/"), "redirects to"),
    "redirect to a name that is none": (redirect(f"http://{'a' * 80}.org/"), "no connection to 127.0.0.1"),
    "redirect nowhere": (redirect(""), "redirects to ''"),
    "redirect with signs": (redirect("javascript:\x1b[2J"), r"redirects to 'javascript:\\x1b\[2J'"),
    "redirect in a circle": (redirect("/x.pt"), "redirects more than 5 times"),
    "length of 5,000 digits": (only(head("Content-Length: " + "9" * 5000), b"x"), "which is no number of bytes"),
    "length below zero": (only(head("Content-Length: -5"), b"x"), "'-5' bytes come, which is no number"),
    "length in words": (only(head("Content-Length: a lot"), b"x"), "'a lot' bytes come"),
    "length of a petabyte": (only(head("Content-Length: 999999999999999")), "and the model's at most"),
    "more than the disk holds": (only(head("Content-Length: 1099511627776")), "free and 1099.51 GB are to come"),
    "range of another place": (
        only(head("Content-Range: bytes 7-9/10", "Content-Length: 3", status="206 Partial Content"), b"abc"),
        r"another part than was asked for \('bytes 7-9/10'\)",
    ),
    "range that was not asked for": (
        only(head("Content-Range: bytes 0-2/3", "Content-Length: 3", status="206 Partial Content"), b"abc"),
        "another part than was asked for",
    ),
    "range without a range": (only(head("Content-Length: 3", status="206 Partial"), b"abc"), "another part"),
    "range of signs": (only(head("Content-Range: \x1b[2J" + "9" * 5000, status="206 Partial"), b"x"), "another part"),
    "a pickle's first byte": (body(b"\x80" + b"x" * 5000), "is not the file"),
    "a bare pickle": (body(b"\x80\x02}q\x00."), "is not the file"),
    "a page": (body(b"<html>please log in</html>" * 100), "it is a web page"),
    "an archive of something else": (body(b"PK\x05\x06" + bytes(18)), "is not the file"),
    "packed": (body(b"\x1f\x8b\x08", "Content-Encoding: gzip"), r"sends the file packed \('gzip'\)"),
    "packed in spite of it": (body(b"\x1f\x8b\x08" + bytes(50)), "it is packed"),
    "more than was said": (body(b"x" * 10), "is not the file"),
    "chunks without end": (
        lambda _: itertools.chain([head("Transfer-Encoding: chunked")], itertools.repeat(chunk(bytes(1 << 16)))),
        "sends more than the 2.00 MB that the file has at most",
    ),
    "no length and no end": (
        lambda _: itertools.chain([head("Connection: close")], itertools.repeat(bytes(1 << 16))),
        "sends more than the 2.00 MB",
    ),
    "a chunk of a strange size": (only(head("Transfer-Encoding: chunked"), b"-5\r\nabc\r\n"), "connection broke"),
    "a chunk's size without end": (
        only(head("Transfer-Encoding: chunked"), b"1" * 70_000),
        "the connection broke after 0.00 MB",
    ),
    "a byte now and then": (slowly(head("Content-Length: 1000000"), b"x"), "sends next to nothing any more"),
    "a chunk's size, a digit now and then": (slowly(head("Transfer-Encoding: chunked"), b"0"), "next to nothing"),
    "what follows the chunks, without end": (
        slowly(head("Transfer-Encoding: chunked") + b"0\r\n", b"a: b\r\n"),
        "next to nothing",
    ),
    "headers now and then": (slowly(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"), "no answer within|not understood"),
    "to be continued without end": (slowly(b"", head(status="100 Continue")), "no answer within"),
    "a million headers": (only(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000), "more than 100 headers"),
    "a header of a megabyte": (only(b"HTTP/1.1 200 OK\r\na: " + b"b" * (1 << 20)), "answer is not understood"),
    "no HTTP": (only(b"SSH-2.0-OpenSSH_9.6\r\n\x1b[2J"), "answer is not understood"),
    "a status of a megabyte": (only(b"HTTP/1.1 200 " + b"b" * (1 << 20)), "answer is not understood"),
    "nothing at all": (only(b""), "no connection to 127.0.0.1"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_whatever_a_server_sends_ends_in_one_sentence(server: Server, target: Path, kind: str) -> None:
    server.behaviour.says, says = HOSTILE[kind]
    largest = 2_000_000 if "disk" not in kind else 1 << 40
    lines: list[str] = []
    limits: dict[str, Any] = {"timeout": 0.3, "stall": 0.15, "attempts": 3, "pause": 0.001}
    with pytest.raises(DownloadError, match=says) as caught:
        download(server.url, target, lines.append, Expected(check_small, largest=largest), **limits)
    for line in (str(caught.value), *lines):
        assert line.isprintable()
        assert len(line) < 500
    assert not target.exists()
    server.behaviour.says = None
    get(server, target)  # and nothing that came spoils the next attempt


@pytest.mark.parametrize("proof", [FileProof(10, "0" * 64), FileProof(2600, "0" * 64)])
def test_another_file_than_the_released_one(server: Server, target: Path, proof: FileProof) -> None:
    server.behaviour.content = b"<html>please log in</html>" * 100
    with pytest.raises(DownloadError, match="the released one 10" if proof.size == 10 else "web page"):
        download(server.url, target, print, Expected(check_small, proof))
    assert not list(target.parent.iterdir())


def test_from_https_nowhere_else() -> None:
    for place in ("http://a.org/x", "ftp://a.org/x", "https://:80/"):
        with pytest.raises(DownloadError, match="which is no address of https"):
            next_place("https://a.org/y", place)
    assert next_place("https://a.org/y", "/z Ã©") == "https://a.org/z%20%C3%A9"  # UTF-8, as http.client reads it
    assert next_place("http://a.org/y", "https://b.org/x") == "https://b.org/x"


def test_notes_that_somebody_changed_are_not_believed(server: Server, target: Path) -> None:
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True)
    size = len(server.behaviour.content)
    for change in ({"size": "x"}, {"size": -1}, {"size": 10**400}, {"validator": 5}, {"validator": '"a\r\nHost: b"'}):
        part.write_bytes(b"x" * 10)
        notes = {"url": server.url, "validator": '"one"', "size": size, **change}
        target.with_name(target.name + ".part.json").write_text(json.dumps(notes))
        get(server, target)
        target.unlink()
    assert server.behaviour.requests == [None] * 5


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

    download(url, target, log, ANY)


def test_of_two_processes_one_downloads(server: Server, target: Path, tmp_path: Path) -> None:
    reports = [tmp_path / f"report{i}" for i in range(2)]
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
    content = server.behaviour.content
    monkeypatch.setitem(ESM2_MODELS, name, SMALL)
    monkeypatch.setitem(RELEASED, name, FileProof(len(content), "0" * 64))
    with pytest.raises(UserError, match="its sha256 is another") as caught:
        locate_checkpoint(name, print, url=server.url)
    assert str(caught.value).isprintable()
    assert not list((tmp_path / "torch" / "hub" / "checkpoints").iterdir())
    monkeypatch.setitem(RELEASED, name, FileProof(len(content), sha256(content)))
    server.behaviour.requests.clear()
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
