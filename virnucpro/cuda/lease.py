"""One job, one GPU, on a machine that nobody schedules.

Snakemake counts GPUs (``--resources gpu=4``) but hands out no numbers, so every job of a machine
would open the first one. Here a job takes an advisory lock (``flock``) for each device that it will
use, before CUDA starts, and narrows ``CUDA_VISIBLE_DEVICES`` to those.

- The lock belongs to the open file, so the kernel frees it when the process ends, however it ends.
- It is not handed to programs that the job starts (close-on-exec): a helper that lingers cannot keep
  a GPU from the next job. So a worker that computes on the GPU must end when its parent does, as
  :mod:`virnucpro.engine.worker` does. A forked child that has not started another program shares
  the lock until it ends, as it shares the GPU.
- Lock files lie in one place for all users of the machine, and are named by the device's UUID, so
  that ``0``, ``GPU-5c89...`` and an unset variable meet at the same lock. Where the driver does not answer,
  a job knows a GPU by its number alone, or does not see that it is sliced (MIG): so those who know more also hold the
  locks of these coarser names, shared among themselves, and a job that knows no better holds its one alone.
  Only programs that ask here are kept apart; others on the same machine are not noticed.
- Under Slurm the scheduler has chosen: its value is left as it is. Jobs that run side by side inside
  one allocation take turns on it; jobs of different allocations never wait for each other here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import random
import re
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from virnucpro.base.atomic import is_still
from virnucpro.base.errors import UserError
from virnucpro.cuda.visible import NUMBERED, VISIBLE, VisibleDevice, device_nodes, list_gpus, visible_devices

LEASE_DIRECTORY = Path("/tmp/virnucpro-leases")
"""Where the locks lie. Not ``tempfile.gettempdir()``: ``TMPDIR`` differs from job to job."""

_NOTE = b"A lock for one GPU, held while a virnucpro job runs on it. Safe to delete when none runs.\n"


@contextmanager
def lease_devices(
    count: int,
    *,
    directory: Path | None = None,
    logger: logging.Logger,
    poll_seconds: float = 1.0,
    report_seconds: float = 60.0,
    turn_seconds: float = 600.0,
) -> Iterator[list[str]]:
    """Hold ``count`` GPUs for the block, and let CUDA see those alone.

    Waits as long as it takes, with a log line at once and then every ``report_seconds``; only for its turn to ask,
    which each takes for an instant, no longer than ``turn_seconds``. Devices are taken all together or not at all, so
    two jobs that want several cannot block each other; a job that wants many may wait long where others keep taking
    one. Fewer are taken where the machine has fewer than ``count``. Must run before CUDA starts in this process.

    Args:
        count: how many GPUs the job wants; 0 hides them all. Under Slurm it is as many as Slurm gave.
        directory: where the lock files lie; for tests.

    Yields:
        Values for ``CUDA_VISIBLE_DEVICES``, one a device (the variable holds them all during the
        block, and its old value after it). Empty where the process may use no GPU.

    Raises:
        UserError: when the lock files cannot be made, somebody keeps the turn, or ``nvidia-smi`` hangs.
    """
    inherited = os.environ.get(VISIBLE)
    slurm_job = os.environ.get("SLURM_JOB_ID")
    if slurm_job is not None and inherited is not None:
        wanted = visible_devices(inherited, None)  # as Slurm numbers them, whatever nvidia-smi shows inside
        if len(wanted) > count:
            count = len(wanted)
        value, scope = inherited, f"slurm-{slurm_job}-"
    elif count <= 0:
        with _environment({VISIBLE: ""}):
            yield []
        return
    else:
        gpus = list_gpus()
        wanted, value, scope = visible_devices(inherited, gpus, device_nodes()), None, ""
        if gpus is None and wanted:
            logger.warning("nvidia-smi does not list the GPUs here, so they are told apart by number alone")
    if not wanted:
        logger.info("No NVIDIA GPU found to lease (%s)", _describe(inherited))
        yield []
        return
    if count > len(wanted):
        logger.warning(
            "%d GPUs asked for, %d given (%s): going on with those", count, len(wanted), _describe(inherited)
        )
        count = len(wanted)
    lock_files = _lock_paths(wanted, directory or LEASE_DIRECTORY, scope)
    with ExitStack() as locks:
        taken = _wait_for(lock_files, count, locks, logger, poll_seconds, report_seconds, turn_seconds)
        tokens = [device.token for device in taken]
        variables = {VISIBLE: ",".join(tokens) if value is None else value}
        if value is None:
            variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the driver's; CUDA's own numbers put the fastest first
        with _environment(variables):
            logger.info("Leased GPU %s", ", ".join(tokens))
            yield tokens


def lease_holders(paths: Sequence[Path]) -> list[int]:
    """Process ids that hold a lock on any of these files, as ``/proc/locks`` lists them (best effort)."""
    inodes = set()
    for path in paths:
        with contextlib.suppress(OSError):
            inodes.add(path.stat().st_ino)
    holders = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            # 1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK" and int(fields[5].rsplit(":", 1)[1]) in inodes:
                holders.add(int(fields[4]))
    return sorted(holders)


def _describe(visible: str | None) -> str:
    return f"{VISIBLE} is not set" if visible is None else f"{VISIBLE}={visible}"


@dataclass(frozen=True)
class _Locks:
    """The lock files of one device: the one that is held alone, and those of its coarser names, held with others."""

    alone: Path
    shared: tuple[Path, ...]


def _lock_paths(devices: Sequence[VisibleDevice], directory: Path, scope: str) -> dict[_Locks, VisibleDevice]:
    """The locks of each device.

    A device known by number alone is this host's; a UUID is the same device from any container.
    """

    def path(identity: str) -> Path:
        host = f"{socket.gethostname()}-" if identity.startswith(NUMBERED) else ""
        return directory / (re.sub(r"[^\w.-]", "_", f"{host}{scope}{identity}") + ".lock")

    return {_Locks(path(device.identity), tuple(map(path, device.coarser))): device for device in devices}


def _wait_for(
    lock_files: Mapping[_Locks, VisibleDevice],
    count: int,
    locks: ExitStack,
    logger: logging.Logger,
    poll_seconds: float,
    report_seconds: float,
    turn_seconds: float,
) -> list[VisibleDevice]:
    """Try until ``count`` of the locks are ours; ``locks`` closes them."""
    started = last_turn = time.monotonic()
    next_report = started
    turn = next(iter(lock_files)).alone.parent / "turn.lock"
    while True:
        # One tries at a time: two that want two of two devices cannot take one each forever.
        with ExitStack() as held:
            has_turn = _try_lock(turn, held)
            if has_turn and (taken := _try_all(lock_files, count, locks)):
                return taken
        now = time.monotonic()
        last_turn = now if has_turn else last_turn
        if now > last_turn + turn_seconds:
            raise UserError(
                f"the GPU lock {turn} has been held for {now - last_turn:.0f} s, where an instant is usual (by process "
                f"{_listed(lease_holders([turn]))}): end that process, or remove the file, and run the same command "
                "again"
            )
        # The turn is held for an instant at a time, so a wait for it is worth a line only when it lasts.
        if now >= next_report and (has_turn or now > started + poll_seconds):
            names = ", ".join(device.token for device in lock_files.values())
            files = [path for one in lock_files for path in (one.alone, *one.shared)]
            logger.info(
                "Waiting for %s, for %.0f s so far; held by process %s",
                f"{count} free GPU of {names}" if has_turn else f"{turn}, which no job holds for long",
                now - started,
                _listed(lease_holders(files if has_turn else [turn])),
            )
            next_report = now + report_seconds
        pause = poll_seconds if has_turn else min(poll_seconds, 0.05)
        time.sleep(pause * random.uniform(0.5, 1.0))  # apart from the others that wait


def _listed(processes: Sequence[int]) -> str:
    return ", ".join(map(str, processes)) or "unknown"


def _try_all(lock_files: Mapping[_Locks, VisibleDevice], count: int, locks: ExitStack) -> list[VisibleDevice]:
    """Lock ``count`` devices at once, without waiting, or none."""
    with ExitStack() as mine:
        taken: list[VisibleDevice] = []
        for files, device in lock_files.items():
            with ExitStack() as its:
                if _try_lock(files.alone, its) and all(_try_lock(path, its, fcntl.LOCK_SH) for path in files.shared):
                    mine.push(its.pop_all())
                    taken.append(device)
            if len(taken) == count:
                locks.push(mine.pop_all())
                return taken
    return []


def _try_lock(path: Path, held: ExitStack, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock one file, alone or shared, without waiting; ``held`` closes it."""
    descriptor = _open_lock(path)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    held.callback(os.close, descriptor)
    return is_still(descriptor, path)  # else somebody has tidied the directory meanwhile


def _open_lock(path: Path) -> int:
    """A descriptor for the lock file, made if it is not there, for every user to lock.

    Read access is enough for ``flock``. The file is opened without ``O_CREAT`` first: in a directory
    that all may write to, the kernel refuses that flag on other users' files (fs.protected_regular).
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not keep us waiting
    try:
        for _ in range(100):
            try:
                descriptor = os.open(path, flags)
            except FileNotFoundError:
                _make_lock(path)
                continue
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise OSError(errno.EINVAL, "it is no plain file")
            os.read(descriptor, 1)  # keeps it young for cleaners of /tmp, which go by the last access
            return descriptor
    except OSError as error:
        raise UserError(
            f"cannot make the GPU lock {path} ({error.strerror}): it must be a plain file in a directory that every "
            "user may write to; remove it or its directory and run the same command again"
        ) from None
    raise UserError(f"the GPU lock {path} vanishes as soon as it is made: something keeps emptying {path.parent}")


def _make_lock(path: Path) -> None:
    """Make a lock file, and its directory like /tmp itself: for everybody, and only a file's owner may remove it.

    Both have their final mode from the first instant, because another user may open them in the next.
    """
    before = os.umask(0)
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(0o777 | stat.S_ISVTX)
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            os.write(descriptor, _NOTE)
            os.close(descriptor)
    finally:
        os.umask(before)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
