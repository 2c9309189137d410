"""Python processes without the seconds of imports: forked from one that has imported Snakemake and torch already.

Most tests of the workflow ask what was computed, not how a process starts. Their Snakemake and its jobs are forks, each
with folder, environment, arguments, output and signals of its own; nothing of virnucpro is imported before a fork.
Tests in which processes are what is tested (faults, GPUs' leases, Slurm, the docs' commands) start real ones.

Run as a program with the path of a socket (``.socket``) this is the server; with other arguments it stands in for
Python.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import shlex
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

SERVER = "VIRNUCPRO_TEST_SERVER"
"""In the environment: the server's socket."""


def request(arguments: list[str], cwd: str, env: dict[str, str], outputs: list[int]) -> socket.socket:
    """Ask for a process; what is read from the connection in the end is its exit status, in decimal.

    Args:
        arguments: those of Python: a script, or ``-m`` and a module.
        outputs: file descriptors for its standard input, output and error. It dies with the connection.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(env[SERVER])
    text = json.dumps({"arguments": arguments, "cwd": cwd, "env": env}).encode()
    socket.send_fds(connection, [len(text).to_bytes(8, "little")], outputs)
    connection.sendall(text)
    return connection


def status(connection: socket.socket) -> int:
    """Wait for the end of the process; negative is a signal, as with ``subprocess``."""
    with connection:
        return int(connection.recv(20) or -signal.SIGKILL)


def serve(path: str) -> NoReturn:
    """Fork a process for each connection until standard input is closed."""
    base = sys.path[1:]  # the first is this script's folder
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    python = Path(path).with_name("python")
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -IS {shlex.quote(__file__)} "$@"\n')
    python.chmod(0o755)
    for name in ("snakemake.cli", "torch", "pyarrow.parquet", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        with suppress(ImportError):
            __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        if listener.fileno() not in select.select([listener.fileno(), sys.stdin.fileno()], [], [])[0]:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _watch(connection, base, python)
        connection.close()


def _watch(connection: socket.socket, base: list[str], python: Path) -> NoReturn:
    """Fork the process, wait for it, say how it ended; end it if nobody wants to know any more."""
    head, outputs, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as file:
        text = file.read(int.from_bytes(head, "little"))
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(json.loads(text), outputs, base, python)
    ended = os.pidfd_open(pid)
    if ended not in select.select([ended, connection.fileno()], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):
        connection.sendall(str(code).encode())
    os._exit(0)


def _become(asked: dict[str, Any], outputs: list[int], base: list[str], python: Path) -> NoReturn:
    """Be the process that was asked for."""
    for number, output in enumerate(outputs):
        os.dup2(output, number)
        os.close(output)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    arguments: list[str] = asked["arguments"]
    is_module = arguments[0] == "-m"
    named = [entry for entry in asked["env"].get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [asked["cwd"] if is_module else str(Path(arguments[0]).parent), *named, *base]
    sys.argv = arguments[1:] if is_module else arguments
    sys.executable = str(python)  # its own jobs are forks too
    code = 1
    try:
        if is_module:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1].endswith(".socket"):
        serve(sys.argv[1])
    code = status(request(sys.argv[1:], str(Path.cwd()), dict(os.environ), [0, 1, 2]))
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)
