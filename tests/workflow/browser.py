"""A real headless Chromium, driven over its DevTools protocol through a pipe; no port, no driver, no package.

The protocol is described at https://chromedevtools.github.io/devtools-protocol/; with ``--remote-debugging-pipe`` the
browser reads JSON messages from file descriptor 3 and writes to 4, each ended by a zero byte.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    # WebGL without a GPU.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """The path of a Chromium, if this machine has one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page in a browser of its own.

    Attributes:
        errors: uncaught exceptions and error messages of the console since the start.
        requests: addresses that were asked for, other than files and data in the page itself.
    """

    def __init__(self, profile: Path, *, width: int, height: int, mobile: bool = False) -> None:
        chromium = find_chromium()
        assert chromium is not None
        # High numbers, so that neither end is 3 or 4 before the child makes them so.
        to_child, from_us = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in os.pipe())
        from_child, to_us = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in os.pipe())

        def give() -> None:
            os.dup2(to_child, 3)
            os.dup2(to_us, 4)

        with (profile.parent / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                [chromium, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
                pass_fds=(3, 4),
                preexec_fn=give,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        os.close(to_child)
        os.close(to_us)
        self._out, self._in = from_us, from_child
        self._received = b""
        self._number = 0
        self._session: str | None = None
        self._loaded = 0
        self._is_pressed = False
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, timeout: float = 60, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        until = time.monotonic() + timeout
        while True:
            answer = self._next(until)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def open(self, file: Path) -> None:
        """Open a file from disk and wait until it has loaded."""
        before = self._loaded
        self.call("Page.navigate", url=file.resolve().as_uri())
        until = time.monotonic() + 60
        while self._loaded == before:
            self._next(until)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait_for(self, script: str, timeout: float = 30) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + timeout
        while not self.evaluate(f"!!({script})"):
            if time.monotonic() > until:
                raise TimeoutError(f"never true: {script}; errors: {self.errors}")
            time.sleep(0.05)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """The left button: ``mousePressed``, ``mouseMoved`` or ``mouseReleased``."""
        button = "none" if kind == "mouseMoved" and not self._is_pressed else "left"
        self._is_pressed = kind == "mousePressed" or (kind == "mouseMoved" and self._is_pressed)
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=int(self._is_pressed), clickCount=1
        )

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._in], [], [], max(0, until - time.monotonic()))
            block = os.read(self._in, 1 << 20) if ready else b""
            if not block:
                raise TimeoutError(f"Chromium does not answer (exit code {self._process.poll()})")
            self._received += block
        text, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded += 1
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')[:200]}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in params["args"]))
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "about:", "blob:")):
                self.requests.append(url)
