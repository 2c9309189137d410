"""One request to a server that is not trusted: how long it may take, where it may be sent on to, what its answer says.

Only http and https are spoken (no file, no ftp), and what the server says is cut and written out in messages.
"""

from __future__ import annotations

import http.client
import os
import queue
import socket
import string
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from types import TracebackType

from virnucpro.base.errors import UserError
from virnucpro.base.text import short

REDIRECTS = {301, 302, 303, 307, 308}
MOST_REDIRECTS = 5

SLOWEST = 1000
"""Bytes a second below which a server is taken to have stalled."""


class DownloadError(UserError):
    """A download that did not succeed; the message is the reason alone, for the caller to add the way out."""


class Interrupted(Exception):
    """The connection failed in a way that may pass."""

    def __init__(self, reason: str, *, answered: bool, stalled: bool = False) -> None:
        super().__init__(reason)
        self.answered = answered  # whether the server was reached
        self.stalled = stalled  # whether it brought next to nothing before


def open_url(url: str, headers: dict[str, str], timeout: float) -> http.client.HTTPResponse | None:
    """Ask for a file within ``timeout`` seconds in all: name look-up and several addresses could take far longer.

    Returns:
        An answer of status 200 or 206; None for 416, which says that there is nothing in the range asked for.

    Raises:
        Interrupted: no connection or no answer, or the server is busy.
        DownloadError: any other answer.
    """
    answer: queue.SimpleQueue[http.client.HTTPResponse | Exception] = queue.SimpleQueue()
    given_up = threading.Event()

    def ask() -> None:
        try:
            response = _follow(url, headers, timeout, given_up)
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
            said = f"the server answers {result.code} {_words(str(result.reason))}"
            if result.code == 416:
                return None
            if result.code == 429 or result.code >= 500:
                raise Interrupted(said, answered=True)
            raise DownloadError(said)
    if isinstance(result, urllib.error.URLError) and isinstance(result.reason, Exception):
        result = result.reason
    if isinstance(result, TimeoutError):
        raise Interrupted(f"no answer within {timeout:.0f} s", answered=False)
    if isinstance(result, (OSError, ValueError)):  # the latter for a name that cannot be one
        reason = _words(getattr(result, "strerror", None) or str(result) or type(result).__name__)
        raise Interrupted(
            f"no connection to {urllib.parse.urlsplit(url).hostname} ({reason})",
            answered=isinstance(result, ConnectionResetError),
        )
    if isinstance(result, http.client.HTTPException):
        reason = _words(f"{type(result).__name__} {result}")
        raise DownloadError(f"the server's answer is not understood ({reason}; is a proxy in between?)")
    if isinstance(result, Exception):
        raise result
    if result.status not in (200, 206):
        result.close()
        raise DownloadError(f"the server answers {result.status} {_words(result.reason)}, without a file")
    return result


def _follow(url: str, headers: dict[str, str], timeout: float, given_up: threading.Event) -> http.client.HTTPResponse:
    """Open ``url``, or where the server sends it on to; no body of an answer on the way is read."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    for _ in range(MOST_REDIRECTS + 1):
        try:
            response: http.client.HTTPResponse = opener.open(
                urllib.request.Request(url, headers=headers), None, timeout
            )
            return response
        except urllib.error.HTTPError as error:
            if error.code not in REDIRECTS or given_up.is_set():
                raise
            url = next_place(url, error.headers.get("Location", ""))
            error.close()
    raise DownloadError(f"the server redirects more than {MOST_REDIRECTS} times, the last time to {short(url)}")


def next_place(url: str, location: str) -> str:
    """Where a redirection leads: to http or https, and never from https to http.

    Raises:
        DownloadError: nowhere, or elsewhere.
    """
    quoted = urllib.parse.quote(location, safe=string.punctuation, encoding="iso-8859-1", errors="replace")
    try:
        place = urllib.parse.urljoin(url, quoted)
        parts = urllib.parse.urlsplit(place)
        is_one = bool(location and parts.hostname and parts.port != 0) and len(place) < 8000
    except ValueError:
        is_one = False
    allowed = ("https",) if url.startswith("https:") else ("http", "https")
    if not is_one or parts.scheme not in allowed:
        raise DownloadError(f"the server redirects to {short(location)}, which is no address of {' or '.join(allowed)}")
    return place


def _words(text: str) -> str:
    """A server's words, cut, without quotation marks."""
    return short(text.strip())[1:-1]


class Watch:
    """Cuts a connection that brings too little, whatever part of an answer it hangs in.

    Attributes:
        received: bytes so far; whoever reads counts.
        stalled: whether it was cut.
    """

    def __init__(self, response: http.client.HTTPResponse, seconds: float) -> None:
        self.received = 0
        self.stalled = False
        self._seconds = seconds
        self._socket = socket.socket(fileno=os.dup(response.fileno()))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._socket.close()

    def _watch(self) -> None:
        before = 0
        while not self._done.wait(self._seconds):
            if self.received - before < SLOWEST * self._seconds:
                self.stalled = True
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                return
            before = self.received
