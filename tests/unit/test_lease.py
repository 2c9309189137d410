"""GPU leases with real processes: never two jobs on one device, whatever happens to the holders.

A text-only stand-in for ``nvidia-smi`` plays a machine with four GPUs; locks, processes and signals are real.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from virnucpro.base.errors import UserError
from virnucpro.cuda import lease as lease_module
from virnucpro.cuda.lease import LEASE_DIRECTORY, lease_devices
from virnucpro.cuda.visible import list_gpus, parse_gpu_list, visible_devices

ROOT = Path(__file__).parents[2]
LOG = logging.getLogger("test_lease")
UUIDS = [f"GPU-{digit * 8}-0000-0000-0000-000000000000" for digit in "abcd"]

HOLDER = """
import json, logging, os, subprocess, sys, time
from pathlib import Path
from virnucpro.cuda.lease import lease_devices

directory, count, seconds, journal = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
logging.basicConfig(level=logging.INFO, format="%(message)s")
quick = {"poll_seconds": 0.05, "report_seconds": 0.5}
with lease_devices(count, directory=directory, logger=logging.getLogger(), **quick) as got:
    with open(journal, "a") as out:
        start = time.monotonic()
        out.write(f"start {os.getpid()} {start} {os.environ.get('CUDA_VISIBLE_DEVICES')} {','.join(got)}\\n")
        out.flush()
        time.sleep(seconds)
        out.write(f"end {os.getpid()} {time.monotonic()} - -\\n")
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with four GPUs, as far as nvidia-smi -L can tell."""
    programs = tmp_path / "bin"
    programs.mkdir()
    listing = "".join(f"GPU {i}: NVIDIA A100-SXM4-40GB (UUID: {uuid})\n" for i, uuid in enumerate(UUIDS))
    (programs / "list").write_text(listing)
    (programs / "nvidia-smi").write_text(f"#!/bin/sh\ncat {programs}/list\n")
    (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return programs


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process that holds GPUs for a while and writes down when; all are gone at the end."""
    running: list[subprocess.Popen[str]] = []

    def _start(count: int, seconds: float, **environment: str) -> subprocess.Popen[str]:
        arguments = [str(tmp_path / "locks"), str(count), str(seconds), str(tmp_path / "journal")]
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, *arguments],
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield _start
    for process in running:
        process.kill()
        process.communicate()


def journal(tmp_path: Path) -> list[list[str]]:
    path = tmp_path / "journal"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


LONGEST_WAIT = 300
"""Seconds; a machine at full load may need many to start a process."""


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST_WAIT
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def held_intervals(tmp_path: Path, killed: dict[int, float]) -> dict[str, list[tuple[float, float]]]:
    """When each device was held, in order. A killed process held its own until it was killed, or had let go before."""
    ends = killed | {int(pid): float(at) for word, pid, at, *_ in journal(tmp_path) if word == "end"}
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for word, pid, at, visible, got in journal(tmp_path):
        if word == "start":
            assert visible == got
            for device in got.split(","):
                spans[device].append((float(at), ends[int(pid)]))
    return {device: sorted(times) for device, times in spans.items()}


def test_never_two_jobs_on_one_device(tmp_path: Path, start: Start) -> None:
    """Two dozen jobs that want one, two or three of four GPUs, a third of them killed on the way."""
    chance = random.Random(7)
    processes = [start(chance.choice([1, 1, 1, 2, 3]), 0.25) for _ in range(24)]
    killed: dict[int, float] = {}
    for victim in processes[::3]:
        wait_until(lambda: any(line[0] == "start" and line[1] == str(victim.pid) for line in journal(tmp_path)))  # noqa: B023
        if victim.poll() is None:
            killed[victim.pid] = time.monotonic()
            victim.kill()
    for process in processes:
        process.wait(LONGEST_WAIT)
    assert all(process.returncode in (0, -signal.SIGKILL) for process in processes)
    assert killed
    spans = held_intervals(tmp_path, killed)
    assert set(spans) == set(UUIDS), "all devices were used"
    for device, times in spans.items():
        for (_, before), (after, _) in itertools.pairwise(times):
            assert before <= after + 1e-3, f"{device} was held twice at once"


def test_lease_of_a_killed_process_is_free_at_once(tmp_path: Path, start: Start) -> None:
    holder = start(4, 60)
    wait_until(lambda: len(journal(tmp_path)) == 1)
    waiter = start(1, 0)
    time.sleep(0.5)
    assert len(journal(tmp_path)) == 1
    killed = time.monotonic()
    holder.kill()
    wait_until(lambda: len(journal(tmp_path)) > 1)
    assert float(journal(tmp_path)[1][2]) - killed < 30, "the holder would have kept it for 60 seconds"
    assert waiter.wait(LONGEST_WAIT) == 0


def test_waits_with_a_message_that_names_the_holder(tmp_path: Path, start: Start) -> None:
    holder = start(4, LONGEST_WAIT)
    wait_until(lambda: len(journal(tmp_path)) == 1)
    began = time.monotonic()
    waiter = start(1, 0)
    assert waiter.stderr is not None
    waits = [waiter.stderr.readline() for _ in range(3)]
    assert time.monotonic() - began >= 2 * 0.5, "at once, then every half second here"
    holder.kill()
    _, log = waiter.communicate(timeout=LONGEST_WAIT)
    for line in waits:
        assert line.startswith("Waiting")
        assert f"held by process {holder.pid}" in line
        assert all(uuid in line for uuid in UUIDS)
    assert log.splitlines()[-1].startswith("Leased GPU GPU-")


@pytest.mark.parametrize("name", ["2", "GPU-cccc", UUIDS[2]])
def test_one_device_by_any_name_is_one_lock(tmp_path: Path, start: Start, name: str) -> None:
    start(1, 60, CUDA_VISIBLE_DEVICES=name)
    wait_until(lambda: len(journal(tmp_path)) == 1)
    start(3, 60)
    wait_until(lambda: len(journal(tmp_path)) == 2)
    assert journal(tmp_path)[0][3] == UUIDS[2]
    assert journal(tmp_path)[1][3] == ",".join([UUIDS[0], UUIDS[1], UUIDS[3]])
    late = start(1, 60)
    time.sleep(0.5)
    assert late.poll() is None
    assert len(journal(tmp_path)) == 2


def test_jobs_of_disjoint_devices_do_not_wait(tmp_path: Path, start: Start) -> None:
    start(1, 60, CUDA_VISIBLE_DEVICES="0")
    wait_until(lambda: len(journal(tmp_path)) == 1)
    start(1, 60, CUDA_VISIBLE_DEVICES="0")  # waits
    assert start(1, 0, CUDA_VISIBLE_DEVICES="1").wait(LONGEST_WAIT) == 0


def test_two_that_want_all_do_not_block_each_other(tmp_path: Path, start: Start) -> None:
    processes = [start(4, 0.05) for _ in range(6)] + [start(4, 0.05, CUDA_VISIBLE_DEVICES="3,2,1,0") for _ in range(6)]
    assert [process.wait(LONGEST_WAIT) for process in processes] == [0] * 12


def test_environment_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease_devices(2, directory=tmp_path, logger=LOG) as got:
        assert got == UUIDS[:2]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(UUIDS[:2])
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    with lease_devices(9, directory=tmp_path, logger=LOG) as got:
        assert got == UUIDS, "fewer where there are fewer"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    with lease_devices(1, directory=tmp_path, logger=LOG) as got:
        assert got == [UUIDS[3]]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,1"


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles", "17"])
def test_no_gpu_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with lease_devices(1, directory=tmp_path / "locks", logger=LOG) as got:
        assert got == []
        assert os.environ["CUDA_VISIBLE_DEVICES"] == value
    assert not (tmp_path / "locks").exists()


def test_count_zero_hides_all(tmp_path: Path) -> None:
    with lease_devices(0, directory=tmp_path, logger=LOG) as got:
        assert got == []
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_machine_without_gpu(tmp_path: Path, machine: Path) -> None:
    (machine / "list").write_text("No devices found.\n")
    with lease_devices(1, directory=tmp_path, logger=LOG) as got:
        assert got == []
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_slurms_choice_is_left_alone(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its value stays as it is; two allocations never wait here; one allocation's jobs take turns."""
    start(4, 60)  # somebody else's lease on all of them, outside Slurm
    wait_until(lambda: len(journal(tmp_path)) == 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with lease_devices(
        0, directory=tmp_path / "locks", logger=LOG
    ) as got:  # its number counts, too: gres instead of gpu
        assert got == ["0", "2"]
    with lease_devices(1, directory=tmp_path / "locks", logger=LOG) as got:
        assert got == ["0", "2"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,2"
        start(1, 60, SLURM_JOB_ID="4712")
        wait_until(lambda: len(journal(tmp_path)) == 2)
        same_job = start(1, 0)
        time.sleep(0.5)
        assert same_job.poll() is None
    assert same_job.wait(LONGEST_WAIT) == 0
    assert [line[3] for line in journal(tmp_path)[1:3]] == ["0,2", "0,2"]


def test_fewer_gpus_than_asked_for_is_said_on_slurm_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with caplog.at_level("WARNING"), lease_devices(2, directory=tmp_path, logger=LOG) as got:
        assert got == ["1"]
    assert "2 GPUs asked for, 1 given" in caplog.text


def test_slurm_job_to_which_slurm_gave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with lease_devices(1, directory=tmp_path, logger=LOG) as got:
        assert got == UUIDS[:1], "no choice of Slurm's to respect: what the driver shows is ours to share"


def test_programs_that_the_job_starts_do_not_keep_the_lease(tmp_path: Path) -> None:
    with lease_devices(4, directory=tmp_path, logger=LOG):
        helper = subprocess.Popen(["sleep", "60"])
    try:
        with lease_devices(4, directory=tmp_path, logger=LOG, poll_seconds=0.01) as got:
            assert got == UUIDS
            assert helper.poll() is None
    finally:
        helper.kill()
        helper.wait()


def test_lock_files_serve_every_user(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        with lease_devices(4, directory=tmp_path / "locks", logger=LOG):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o1777
    files = sorted(path for path in (tmp_path / "locks").iterdir())
    numbers = [f"{socket.gethostname()}-unknown-{number}.lock" for number in range(4)]
    assert [path.name for path in files] == sorted([*(f"{uuid.lower()}.lock" for uuid in UUIDS), "turn.lock", *numbers])
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert b"Safe to delete" in path.read_bytes()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_another_users_lock_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory as the kernel protects it: sticky, in /tmp, with files of two owners."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # without the stand-in, which the other user cannot reach
    directory = Path("/tmp") / f"virnucpro-test-{os.getpid()}"
    code = f"""
import logging, os, sys
from pathlib import Path
from virnucpro.cuda.lease import lease_devices
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
with lease_devices(2, directory=Path({str(directory)!r}), logger=logging.getLogger()) as got:
    print(*got, flush=True)
    sys.stdin.read()
"""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    try:
        with lease_devices(1, directory=directory, logger=LOG):  # root makes the directory and the first file
            pass
        other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline().split() == ["0", "1"]
        waited = time.monotonic()
        release = threading.Timer(0.7, other.communicate, args=("",))
        release.start()
        with lease_devices(2, directory=directory, logger=LOG, poll_seconds=0.05) as got:
            assert got == ["0", "1"]
            assert time.monotonic() - waited > 0.6
        release.join()
        assert other.returncode == 0
    finally:
        for path in directory.glob("*"):
            path.unlink()
        directory.rmdir()


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
@pytest.mark.parametrize("name", ["turn.lock", f"{UUIDS[0].lower()}.lock"])
def test_what_is_no_plain_file_is_told_at_once(tmp_path: Path, kind: str, name: str) -> None:
    place = tmp_path / "locks" / name
    place.parent.mkdir()
    if kind == "link":
        place.symlink_to("/etc/hostname")
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    with (
        pytest.raises(UserError, match=rf"cannot make the GPU lock .*{name}"),
        lease_devices(1, directory=tmp_path / "locks", logger=LOG),
    ):
        pass


def test_a_turn_that_somebody_keeps_is_told(tmp_path: Path, start: Start) -> None:
    with lease_devices(1, directory=tmp_path / "locks", logger=LOG):
        pass
    program = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, 2); print(flush=True); input()"
    keeper = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "locks" / "turn.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert keeper.stdout is not None
    keeper.stdout.readline()
    waiter = start(1, 0)
    assert waiter.stderr is not None
    line = waiter.stderr.readline()
    assert line.startswith(f"Waiting for {tmp_path / 'locks' / 'turn.lock'}")
    assert f"held by process {keeper.pid}" in line
    with (
        pytest.raises(UserError, match=rf"turn\.lock has been held for .*by process {keeper.pid}\): end that process"),
        lease_devices(1, directory=tmp_path / "locks", logger=LOG, poll_seconds=0.01, turn_seconds=0.2),
    ):
        pass
    keeper.communicate("\n", timeout=20)
    waiter.communicate(timeout=20)
    assert waiter.returncode == 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become other users")
def test_first_use_by_several_users_at_once() -> None:
    """Eight users, each with a strict umask, find no directory and start at the same instant, many times over."""
    program = """
import logging, os, sys, time
from pathlib import Path
from virnucpro.cuda.lease import lease_devices
number, base = int(sys.argv[1]), Path(sys.argv[2])
os.setgroups([]); os.setgid(50000 + number); os.setuid(50000 + number); os.umask(0o077)
for round in range(25):
    sys.stdin.readline()
    with lease_devices(1, directory=base / str(round), logger=logging.getLogger(), poll_seconds=0.01):
        pass
    print(flush=True)
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0", "PATH": "/usr/bin:/bin"}
        users = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(number), folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for number in range(8)
        ]
        for _ in range(25):
            for user in users:
                assert user.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    user.stdin.write("\n")
                    user.stdin.flush()
            for user in users:
                assert user.stdout is not None
                user.stdout.readline()
        errors = [user.communicate(timeout=60)[1] for user in users]
        assert [user.returncode for user in users] == [0] * 8, errors


def test_gpus_that_cannot_be_listed_are_told_apart_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """nvidia-smi fails and the driver has no files, but there are two devices to open."""
    (machine / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    monkeypatch.setattr(lease_module, "device_nodes", lambda: 2)
    if list_gpus() is not None:
        pytest.skip("this machine's driver lists its GPUs")
    quick = {"poll_seconds": 0.01, "directory": tmp_path / "locks", "logger": LOG}
    with lease_devices(1, **quick) as one:  # type: ignore[arg-type]
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # as for another process
        with lease_devices(1, **quick) as other:  # type: ignore[arg-type]
            assert (one, other) == (["0"], ["1"])
    assert "told apart by number alone" in caplog.text


def test_one_gpu_is_one_lock_for_those_who_know_its_number_alone(
    tmp_path: Path, start: Start, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-smi works for one job, and fails for the next one: it takes none of the first's GPUs."""
    start(3, 60, CUDA_VISIBLE_DEVICES="0,1,3")
    wait_until(lambda: len(journal(tmp_path)) == 1)
    (machine / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    monkeypatch.setattr(lease_module, "device_nodes", lambda: 4)
    if list_gpus() is not None:
        pytest.skip("this machine's driver lists its GPUs")
    with lease_devices(1, directory=tmp_path / "locks", logger=LOG) as got:
        assert got == ["2"]
        (machine / "nvidia-smi").write_text(f"#!/bin/sh\ncat {machine}/list\n")
        late = start(1, 0)
        assert late.stderr is not None
        assert late.stderr.readline().startswith("Waiting for 1 free GPU")
    assert late.wait(LONGEST_WAIT) == 0


def test_a_slice_is_part_of_its_gpu_for_those_who_see_no_slices(tmp_path: Path) -> None:
    gpu = f"GPU 0: NVIDIA A100 (UUID: {UUIDS[0]})\n"
    slices = [f"MIG-{digit * 8}-0000-0000-0000-000000000000" for digit in "12"]
    sliced = parse_gpu_list(gpu + "".join(f"  MIG 3g.20gb  Device 0: (UUID: {name})\n" for name in slices))
    files = {
        device.token: locks
        for known in (parse_gpu_list(gpu), sliced)
        for locks, device in lease_module._lock_paths(visible_devices(None, known), tmp_path, "").items()
    }
    whole = files[UUIDS[0]]
    assert [whole.alone in files[name].shared for name in slices] == [True, True]
    assert len({locks.alone for locks in files.values()}) == 3
    assert len({locks.shared[-1] for locks in files.values()}) == 1, "the GPU's number"


def test_directory_emptied_under_the_holder(tmp_path: Path, start: Start) -> None:
    """A cleaner of /tmp removes the files: the one who asks next makes them again and continues."""
    with lease_devices(4, directory=tmp_path / "locks", logger=LOG):
        pass
    for path in (tmp_path / "locks").iterdir():
        path.unlink()
    (tmp_path / "locks").rmdir()
    with lease_devices(4, directory=tmp_path / "locks", logger=LOG) as got:
        assert got == UUIDS


def test_default_place_does_not_follow_tmpdir() -> None:
    assert str(LEASE_DIRECTORY) == "/tmp/virnucpro-leases"
