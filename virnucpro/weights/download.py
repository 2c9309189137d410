"""Download a checkpoint, with progress, going on where a broken download stopped."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import queue
import shutil
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from virnucpro import __version__
from virnucpro.base.atomic import is_still
from virnucpro.base.errors import UserError

Log = Callable[[str], None]

BLOCK = 1 << 20
_NO_CONTENT_RANGE = (-1, None)


class DownloadError(UserError):
    """A download that did not succeed; the message is the reason alone, for the caller to add the way out."""


class _Interrupted(Exception):
    """The connection failed in a way that may pass."""

    def __init__(self, reason: str, *, answered: bool, received: int = 0) -> None:
        super().__init__(reason)
        self.answered = answered  # whether the server was reached
        self.received = received  # bytes


@dataclass(frozen=True)
class _Source:
    """What the bytes of a ``.part`` file belong to; kept beside it, so that two versions never mix."""

    url: str
    validator: str | None
    size: int | None


def download(url: str, target: Path, log: Log, *, timeout: float = 20.0, attempts: int = 5, pause: float = 2.0) -> None:
    """Fetch ``url`` to ``target``, whole or not at all.

    What has come stays in ``NAME.part`` (with ``NAME.part.json``) and the next call asks the server
    for the rest only (Range requests, RFC 9110, section 14). When the server cannot do that, or its
    file has another ETag or size by now, the download starts from the beginning. Of several processes one
    downloads and the others wait.

    Args:
        log: receives progress lines: per cent, MB/s (10**6 bytes), time left.
        timeout: seconds for the connection and for each silence of the server.
        attempts: failures in a row, with nothing received, before giving up; the first is final
            when the server was never reached.
        pause: seconds before the second attempt, doubled for each further one.

    Raises:
        DownloadError: no connection, the server refuses, too many breaks, no space, or what came
            is not a checkpoint.
    """
    part = target.with_name(target.name + ".part")
    notes = target.with_name(target.name + ".part.json")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part, log) as file:
            if target.exists():  # another process finished it while we waited
                part.unlink()
                return
            try:
                _fetch(url, file, notes, target.name, log, timeout, attempts, pause)
            except DownloadError:
                if file.seek(0, os.SEEK_END) == 0:
                    part.unlink()
                raise
            if not _looks_like_checkpoint(file, part):
                part.unlink()
                notes.unlink(missing_ok=True)
                raise DownloadError(f"what {url} sent is no checkpoint (a proxy's or a login page?)")
            os.fsync(file.fileno())
            part.replace(target)
            notes.unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(f"cannot write {part}: {error.strerror or error}") from None


def _fetch(
    url: str, file: BinaryIO, notes: Path, name: str, log: Log, timeout: float, attempts: int, pause: float
) -> None:
    failures, reached = 0, False
    while True:
        try:
            _transfer(url, file, notes, name, log, timeout)
            return
        except _Interrupted as problem:
            reached = reached or problem.answered
            if not reached:
                raise DownloadError(str(problem)) from None
            failures = 1 if problem.received else failures + 1
            if failures >= attempts:
                raise DownloadError(f"{problem} ({failures} times in a row; what has come is kept)") from None
            wait = pause * 2 ** (failures - 1)
            log(f"{name}: {problem}; going on in {wait:.0f} s")
            time.sleep(wait)


def _transfer(url: str, file: BinaryIO, notes: Path, name: str, log: Log, timeout: float) -> None:
    """One request: append to ``file`` what is missing, or start from the beginning when it cannot be continued."""
    known = _read_notes(notes)
    have = file.seek(0, os.SEEK_END) if known is not None and known.url == url else 0
    request = urllib.request.Request(url, headers={"User-Agent": f"virnucpro/{__version__}"})
    if have and known is not None:
        request.add_header("Range", f"bytes={have}-")
        if known.validator is not None:
            request.add_header("If-Range", known.validator)
    response = _open(request, timeout)
    if response is None:  # 416: there is nothing after what we have
        if known is not None and known.size == have:
            return
        notes.unlink(missing_ok=True)
        raise _Interrupted("the server's file has changed; starting from the beginning", answered=True)
    with response:
        start, size = _content_range(response) if response.status == 206 else (0, _content_length(response))
        if size is None and known is not None and response.status == 206:
            size = known.size
        source = _Source(url, _validator(response), size)
        if response.status == 206 and (start != have or source != known):
            # A server that ignores If-Range: its file has changed, or it sent another part.
            notes.unlink(missing_ok=True)
            raise _Interrupted("the server's file has changed; starting from the beginning", answered=True)
        file.truncate(start)
        file.seek(start)
        free = shutil.disk_usage(notes.parent).free
        if size is not None and size - start > free:
            raise DownloadError(
                f"{notes.parent} has {_gigabytes(free)} free and {_gigabytes(size - start)} are to come"
            )
        notes.write_text(json.dumps(asdict(source)))
        if start:
            log(f"{name}: going on after {_gigabytes(start)}")
        _copy(response, file, start, size, name, log)


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, start: int, size: int | None, name: str, log: Log
) -> None:
    began = spoke = time.monotonic()
    done = start
    while block := _read(response, done, done - start):
        file.write(block)
        file.flush()
        done += len(block)
        now = time.monotonic()
        if now - spoke >= max(5.0, (now - began) / 20):  # long downloads speak less often
            spoke = now
            log(_progress(name, done, size, (done - start) / (now - began)))
    if size is not None and done != size:
        raise _Interrupted(
            f"the connection broke after {_gigabytes(done)} of {_gigabytes(size)}", answered=True, received=done - start
        )
    log(_progress(name, done, done, (done - start) / max(time.monotonic() - began, 1e-6)))


def _read(response: http.client.HTTPResponse, done: int, received: int) -> bytes:
    try:
        return response.read1(BLOCK)  # what is there, so that little is lost when it breaks
    except (OSError, http.client.HTTPException):
        raise _Interrupted(f"the connection broke after {_gigabytes(done)}", answered=True, received=received) from None


def _open(request: urllib.request.Request, timeout: float) -> http.client.HTTPResponse | None:
    """Open within ``timeout`` seconds in all: name look-up and several addresses could take far longer."""
    answer: queue.SimpleQueue[http.client.HTTPResponse | Exception] = queue.SimpleQueue()
    given_up = threading.Event()

    def ask() -> None:
        try:
            response = urllib.request.urlopen(request, timeout=timeout)
        except Exception as error:
            answer.put(error)
            return
        if given_up.is_set():
            response.close()
        answer.put(response)

    threading.Thread(target=ask, daemon=True).start()
    try:
        result = answer.get(timeout=timeout)
    except queue.Empty:
        given_up.set()
        result = TimeoutError()
    if isinstance(result, urllib.error.HTTPError):
        with result:
            if result.code == 416:
                return None
            if result.code == 429 or result.code >= 500:
                raise _Interrupted(f"the server answers {result.code} {result.reason}", answered=True)
            raise DownloadError(f"the server answers {result.code} {result.reason}")
    if isinstance(result, urllib.error.URLError) and isinstance(result.reason, Exception):
        result = result.reason
    if isinstance(result, TimeoutError):
        raise _Interrupted(f"no answer within {timeout:.0f} s", answered=False)
    if isinstance(result, (OSError, http.client.HTTPException)):
        reason = getattr(result, "strerror", None) or str(result) or type(result).__name__
        raise _Interrupted(f"no connection to {request.host} ({reason})", answered=False)
    if isinstance(result, Exception):
        raise result
    return result


@contextmanager
def _locked(part: Path, log: Log) -> Iterator[BinaryIO]:
    """Open ``part`` for reading and writing and hold it alone; the kernel frees it when the process dies."""
    while True:
        with part.open("a+b") as opened:
            file: BinaryIO = opened
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log(f"another process is downloading {part.name.removesuffix('.part')}: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                log(f"{part.parent} knows no file locks: start no second download meanwhile")
            if is_still(file.fileno(), part):
                yield file
                return
        # The one we waited for has renamed or removed that file: take the new one.


def _looks_like_checkpoint(file: BinaryIO, part: Path) -> bool:
    file.seek(0)
    return file.read(1) == b"\x80" or zipfile.is_zipfile(part)  # torch's old format is a bare pickle


def _read_notes(notes: Path) -> _Source | None:
    try:
        return _Source(**json.loads(notes.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _validator(response: http.client.HTTPResponse) -> str | None:
    etag = response.headers.get("ETag")
    if etag is not None and not etag.startswith("W/"):  # If-Range takes strong ones alone
        return str(etag)
    modified = response.headers.get("Last-Modified")
    return None if modified is None else str(modified)


def _content_length(response: http.client.HTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte and whole size of a partial answer, from ``bytes 100-199/200``."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, size = rest.partition("/")
    first = span.partition("-")[0]
    if unit != "bytes" or not first.isdecimal():
        return _NO_CONTENT_RANGE
    return int(first), int(size) if size.isdecimal() else None


def _progress(name: str, done: int, size: int | None, speed: float) -> str:
    if size is None:
        return f"{name}: {_gigabytes(done)}, {speed / 1e6:.1f} MB/s"
    left = (size - done) / speed if speed else 0.0
    clock = f"{left / 60:.0f} min" if left >= 120 else f"{left:.0f} s"
    return f"{name}: {100 * done // size} % of {_gigabytes(size)}, {speed / 1e6:.1f} MB/s, {clock} left"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
