"""Download a checkpoint, with progress, going on where a broken download stopped; the server is not trusted."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from virnucpro import __version__
from virnucpro.base.atomic import is_still
from virnucpro.base.digest import FileProof, file_sha256
from virnucpro.base.errors import UserError
from virnucpro.base.text import short
from virnucpro.weights.connection import DownloadError, Interrupted, Watch, open_url

Log = Callable[[str], None]

BLOCK = 1 << 20
"""Bytes read at once, at most."""

PROGRESS = 1 << 14
"""Bytes by which the file has to grow for failures to be counted from the beginning."""

LARGEST = 1 << 40
"""Bytes of any checkpoint."""


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it comes.

    Attributes:
        check: called with the path of what has come; raises :class:`UserError` for what is not the file.
        proof: size and sha256, where they are published.
        largest: bytes, at most.
    """

    check: Callable[[Path], None]
    proof: FileProof | None = None
    largest: int = LARGEST

    @property
    def size(self) -> int | None:
        return None if self.proof is None else self.proof.size


@dataclass(frozen=True)
class _Source:
    """What the bytes of a ``.part`` file belong to; kept beside it, so that two versions never mix."""

    url: str
    validator: str | None
    size: int | None


def download(
    url: str,
    target: Path,
    log: Log,
    expected: Expected,
    *,
    timeout: float = 20.0,
    stall: float = 60.0,
    attempts: int = 5,
    pause: float = 2.0,
) -> None:
    """Fetch ``url`` to ``target``, whole or not at all.

    What has come stays in ``NAME.part`` (with ``NAME.part.json``) and the next call asks the server
    for the rest only (Range requests, RFC 9110, section 14). When the server cannot do that, or its
    file has another ETag or size by now, the download starts from the beginning. Of several processes one
    downloads and the others wait. What is not the file that was expected never takes the name of ``target``.

    Args:
        log: receives progress lines: per cent, MB/s (10**6 bytes), time left.
        expected: what the file has to be.
        timeout: seconds for the connection and for each silence of the server.
        stall: seconds in which a server has to send 1000 bytes a second on average.
        attempts: failures in a row, without progress of the whole, before giving up; the first is final
            when the server was never reached.
        pause: seconds before the second attempt, doubled for each further one.

    Raises:
        DownloadError: no connection, the server refuses, too many breaks, no space, or what came
            is not the file that was expected.
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
                _fetch(_Request(url, file, notes, target.name, log, expected, timeout, stall), attempts, pause)
            except DownloadError:
                if file.seek(0, os.SEEK_END) == 0:
                    part.unlink()
                    notes.unlink(missing_ok=True)
                raise
            try:
                _check(url, part, expected)
            except DownloadError:
                part.unlink()
                notes.unlink(missing_ok=True)
                raise
            os.fsync(file.fileno())
            part.replace(target)
            notes.unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(f"cannot write {part}: {error.strerror or error}") from None


def _check(url: str, part: Path, expected: Expected) -> None:
    """Refuse what has come where it is not the file, by what it is and by its sha256."""
    try:
        expected.check(part)
    except UserError as error:
        reason = str(error).replace(str(part), "it")
        raise DownloadError(f"what {url} sent is not the file (from a proxy or a login page?): {reason}") from None
    if expected.proof is not None and file_sha256(part) != expected.proof.sha256:
        raise DownloadError(f"what {url} sent is not the released file: its sha256 is another")


@dataclass(frozen=True)
class _Request:
    """What one attempt needs; ``file`` is the open ``.part``."""

    url: str
    file: BinaryIO
    notes: Path
    name: str
    log: Log
    expected: Expected
    timeout: float
    stall: float

    def have(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def forget(self) -> None:
        """Begin from the beginning, next time."""
        self.notes.unlink(missing_ok=True)
        self.file.truncate(0)


def _fetch(request: _Request, attempts: int, pause: float) -> None:
    known = _read_notes(request.notes)
    if known is None or known.url != request.url:
        request.forget()
    failures, reached, best = 0, False, request.have()
    while True:
        try:
            _transfer(request)
            return
        except Interrupted as problem:
            reached = reached or problem.answered
            if not reached:
                raise DownloadError(str(problem)) from None
            failures += 1
            if request.have() >= best + PROGRESS and not problem.stalled:
                failures, best = 1, request.have()
            if failures >= attempts:
                raise DownloadError(f"{problem} ({failures} times without progress; what has come is kept)") from None
            wait = pause * 2 ** (failures - 1)
            request.log(f"{request.name}: {problem}; going on in {wait:.0f} s")
            time.sleep(wait)


def _transfer(request: _Request) -> None:
    """One request: append to the file what is missing, or start from the beginning when it cannot be continued."""
    known = _read_notes(request.notes)
    have = request.have() if known is not None else 0
    headers = {"User-Agent": f"virnucpro/{__version__}"}
    if have and known is not None:
        headers["Range"] = f"bytes={have}-"
        if known.validator is not None:
            headers["If-Range"] = known.validator
    response = open_url(request.url, headers, request.timeout)
    if response is None:  # there is nothing after what we have
        if known is not None and known.size == have:
            return
        request.forget()
        raise Interrupted("the server's file has changed; starting from the beginning", answered=True)
    with response:
        source, start = _what_comes(response, request, known, have)
        if response.status == 206 and source != known:
            request.forget()  # a server that ignores If-Range
            raise Interrupted("the server's file has changed; starting from the beginning", answered=True)
        _check_size(source.size, request.expected)
        request.file.truncate(start)
        request.file.seek(start)
        free = shutil.disk_usage(request.notes.parent).free
        if source.size is not None and source.size - start > free:
            raise DownloadError(
                f"{request.notes.parent} has {_gigabytes(free)} free and {_gigabytes(source.size - start)} are to come"
            )
        request.notes.write_text(json.dumps(asdict(source)))
        if start:
            request.log(f"{request.name}: going on after {_gigabytes(start)}")
        _copy(request, response, start, source.size)


def _copy(request: _Request, response: http.client.HTTPResponse, start: int, size: int | None) -> None:
    began = spoke = time.monotonic()
    done = start
    most = request.expected.largest if size is None else size
    with Watch(response, request.stall) as watch:
        while block := _read(response, watch, done):
            done += len(block)
            watch.received += len(block)
            if done > most:
                request.forget()
                raise DownloadError(f"the server sends more than the {_gigabytes(most)} that the file has at most")
            request.file.write(block)
            request.file.flush()
            now = time.monotonic()
            if now - spoke >= max(5.0, (now - began) / 20):  # long downloads speak less often
                spoke = now
                request.log(_progress(request.name, done, size, (done - start) / (now - began)))
    if size is not None and done != size:
        raise _broken(watch, f" of {_gigabytes(size)}", done)
    if not done:
        raise DownloadError("the server sends an empty file")
    request.log(_progress(request.name, done, done, (done - start) / max(time.monotonic() - began, 1e-6)))


def _read(response: http.client.HTTPResponse, watch: Watch, done: int) -> bytes:
    try:
        block = response.read1(BLOCK)  # what is there, so that little is lost when it breaks
    except (OSError, http.client.HTTPException, ValueError):
        raise _broken(watch, "", done) from None
    if watch.stalled:
        raise _broken(watch, "", done)
    return block


def _broken(watch: Watch, of: str, done: int) -> Interrupted:
    how = "the server sends next to nothing any more," if watch.stalled else "the connection broke"
    return Interrupted(f"{how} after {_gigabytes(done)}{of}", answered=True, stalled=watch.stalled)


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


def _read_notes(notes: Path) -> _Source | None:
    try:
        found = _Source(**json.loads(notes.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return None
    size_is_one = found.size is None or (type(found.size) is int and 0 < found.size <= LARGEST)
    validator_is_one = found.validator is None or (
        isinstance(found.validator, str) and _VALIDATOR.fullmatch(found.validator) is not None
    )
    return found if size_is_one and validator_is_one else None


# What an answer says

_VALIDATOR = re.compile(r"[ -~]{1,200}")
"""An ETag or a date that can be sent back in a header."""


def _what_comes(
    response: http.client.HTTPResponse, request: _Request, known: _Source | None, have: int
) -> tuple[_Source, int]:
    """The file that the server sends, and from which byte on.

    Raises:
        DownloadError: it is packed, or its length is no number.
        Interrupted: another part than the one asked for.
    """
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ("", "identity"):
        raise DownloadError(f"the server sends the file packed ({short(encoding)}), which was not asked for")
    length = response.headers.get("Content-Length")
    if length is not None and not _is_number(length):
        raise DownloadError(f"the server says that {short(length)} bytes come, which is no number of bytes")
    come = None if length is None or response.chunked else int(length)
    if response.status == 200:
        return _Source(request.url, _validator(response), request.expected.size if come is None else come), 0
    start, size = _content_range(response)
    if size is None and known is not None:
        size = known.size
    if start != have or not have or (size is not None and come is not None and start + come != size):
        said = response.headers.get("Content-Range", "")
        request.forget()
        raise Interrupted(f"the server sends another part than was asked for ({short(said)})", answered=True)
    return _Source(request.url, _validator(response), size), start


def _check_size(size: int | None, expected: Expected) -> None:
    """Refuse a file before it comes where its size tells that it is another.

    Raises:
        DownloadError: it does.
    """
    if size is None:
        return
    if size == 0:
        raise DownloadError("the server sends an empty file")
    if expected.proof is not None and size != expected.proof.size:
        raise DownloadError(
            f"the server's file has {size:,} bytes and the released one {expected.proof.size:,} (a proxy's or a login "
            "page?)"
        )
    if size > expected.largest:
        raise DownloadError(f"the server's file has {size:,} bytes, and the model's at most {expected.largest:,}")


def _validator(response: http.client.HTTPResponse) -> str | None:
    etag = str(response.headers.get("ETag", ""))
    modified = str(response.headers.get("Last-Modified", ""))
    found = etag if etag and not etag.startswith("W/") else modified  # If-Range takes strong ones alone
    return found if _VALIDATOR.fullmatch(found) else None


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte and whole size of a partial answer, from ``bytes 100-199/200``; -1 where it is not understood."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, size = rest.partition("/")
    first = span.partition("-")[0]
    if unit != "bytes" or not _is_number(first):
        return -1, None
    return int(first), int(size) if _is_number(size) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 15


# Words


def _progress(name: str, done: int, size: int | None, speed: float) -> str:
    if size is None:
        return f"{name}: {_gigabytes(done)}, {speed / 1e6:.1f} MB/s"
    left = (size - done) / speed if speed else 0.0
    clock = f"{left / 60:.0f} min" if left >= 120 else f"{left:.0f} s"
    return f"{name}: {100 * done // size} % of {_gigabytes(size)}, {speed / 1e6:.1f} MB/s, {clock} left"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
