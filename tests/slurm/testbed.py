"""A real Slurm on one Debian machine: five simulated nodes with simulated GPUs.

    python -m tests.slurm.testbed start DIR     # then: export SLURM_CONF=DIR/slurm.conf
    python -m tests.slurm.testbed stop DIR

Needs root and Debian's packages (``apt-get install slurmctld slurmd slurm-client munge``), no systemd and no
accounting database. The daemons are Slurm's own and jobs really run; only the hardware is made up: each node is a
``slurmd`` of its own port on this machine, and each GPU a copy of ``/dev/null`` that Slurm hands out like a GPU.
A machine that already has a Slurm configuration is left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ETC = Path("/etc/slurm")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
HOW_TO_GET_IT = "apt-get install slurmctld slurmd slurm-client munge (Debian or Ubuntu, as root)"


@dataclass(frozen=True)
class Node:
    name: str
    features: str
    gpu: str = ""
    gpus: int = 0


NODES = (
    Node("ampere1", "ampere,sm80", "a100", 2),
    Node("ampere2", "ampere,sm86", "a40", 1),
    Node("hopper1", "hopper,sm90", "h100", 2),
    Node("turing1", "turing,sm75", "rtx2080ti", 2),
    Node("cpu1", "avx512"),
)


def missing() -> str | None:
    """Why no test bed can be started here, or None."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)} not found): {HOW_TO_GET_IT}"
    if os.getuid() != 0:
        return "the Slurm test bed needs root"
    conf = ETC / "slurm.conf"
    if not conf.exists():
        return None
    if not conf.is_symlink() or "ClusterName=virnucpro-testbed" not in conf.read_text():
        return f"this machine has a Slurm of its own ({conf}); the test bed would replace it"
    directory = conf.readlink().parent
    if _daemon(directory / "slurmctld.pid"):
        return f"another test bed is running; stop it with: python -m tests.slurm.testbed stop {directory}"
    return None


def configuration(directory: Path, control_port: int, node_ports: list[int]) -> dict[str, str]:
    """The text of slurm.conf, gres.conf and cgroup.conf."""
    host = socket.gethostname().split(".")[0]
    general = f"""\
ClusterName=virnucpro-testbed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
# No cgroups: a job is its process group (proctrack/linuxproc loses those whose parent dies first), and memory is
# polled each second.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
# No slurmdbd: the state of a finished job is known as long as MinJobAge says.
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={directory}/finished-jobs.log
MinJobAge=600
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=2,sched_interval=2
# Nodes may claim more processors than the machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=1
KillWait=3
DefMemPerCPU=1000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""
    nodes, gres = [], []
    for node, port in zip(NODES, node_ports, strict=True):
        gpus = f"Gres=gpu:{node.gpu}:{node.gpus}" if node.gpus else ""
        nodes.append(
            f"NodeName={node.name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 RealMemory=64000 "
            f"Feature={node.features} {gpus} State=UNKNOWN"
        )
        for number in range(node.gpus):
            gres.append(f"NodeName={node.name} Name=gpu Type={node.gpu} File={directory}/nvidia{number}")
    with_gpu = ",".join(node.name for node in NODES if node.gpus)
    without = ",".join(node.name for node in NODES if not node.gpus)
    partitions = [
        f"PartitionName=cpu Nodes={without} Default=YES MaxTime=04:00:00 State=UP",
        f"PartitionName=gpu Nodes={with_gpu} MaxTime=04:00:00 PriorityTier=1 State=UP",
        # Its jobs preempt those of the partition above; closed until a test wants that.
        f"PartitionName=urgent Nodes={with_gpu} MaxTime=04:00:00 PriorityTier=10 State=INACTIVE",
    ]
    return {
        "slurm.conf": general + "\n".join([*nodes, *partitions, ""]),
        "gres.conf": "\n".join([*gres, ""]),
        # Slurm 22.05 insists on loading a cgroup plugin, although none is used.
        "cgroup.conf": "CgroupPlugin=cgroup/v1\n",
    }


def start(directory: Path, *, seconds: float = 60.0) -> None:
    """Start munge, the controller and all nodes, and wait until every node is idle.

    Raises:
        RuntimeError: where ``missing`` says why not, or when nodes do not come up.
    """
    with _one_at_a_time():
        if reason := missing():
            raise RuntimeError(reason)
        _start(directory)
    end = time.monotonic() + seconds
    conf = str(directory / "slurm.conf")
    while (up := _idle_nodes(conf)) < len(NODES):
        if time.monotonic() > end:
            raise RuntimeError(f"only {up} of {len(NODES)} nodes came up; see the logs in {directory}")
        time.sleep(0.3)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two test runs that start at the same moment must not both find the place free."""
    with Path(tempfile.gettempdir(), "virnucpro-testbed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    (directory / "state").mkdir(exist_ok=True)
    for number in range(max(node.gpus for node in NODES)):
        device = directory / f"nvidia{number}"
        if not device.exists():
            try:
                os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
            except OSError:  # a container without the right to make devices
                device.touch()
    _start_munge(directory)
    ports = _free_ports(len(NODES) + 1)
    ETC.mkdir(exist_ok=True)
    for name, text in configuration(directory, ports[0], ports[1:]).items():
        (directory / name).write_text(text)
        # The jobs' own srun is called without SLURM_CONF, so the compiled-in place must lead here too.
        (ETC / name).unlink(missing_ok=True)
        (ETC / name).symlink_to(directory / name)
    conf = str(directory / "slurm.conf")
    subprocess.run(["slurmctld", "-f", conf], check=True)
    for node in NODES:
        (directory / f"spool-{node.name}").mkdir(exist_ok=True)
        subprocess.run(["slurmd", "-f", conf, "-N", node.name], check=True)


def stop(directory: Path) -> None:
    """Cancel all jobs, end the daemons that ``start`` started, and take the links out of /etc/slurm."""
    environment = os.environ | {"SLURM_CONF": str(directory / "slurm.conf")}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["scancel", "--user=root"], env=environment, timeout=10, check=False, capture_output=True)
        for _ in range(20):
            queue = subprocess.run(["squeue", "-h"], env=environment, timeout=10, capture_output=True, check=False)
            if not queue.stdout.strip():
                break
            time.sleep(0.5)
    daemons = [pid for file in directory.glob("*.pid") if (pid := _daemon(file))]
    for pid in daemons:
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in daemons) and time.monotonic() < end:
        time.sleep(0.2)
    for pid in daemons:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for name in ("slurm.conf", "gres.conf", "cgroup.conf"):
        link = ETC / name
        if link.is_symlink() and link.readlink() == directory / name:
            link.unlink()


@contextlib.contextmanager
def running(directory: Path) -> Iterator[None]:
    """A test bed for the block, stopped also when this process is killed."""
    guard = subprocess.Popen(
        [sys.executable, __file__, "guard", str(directory)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        start(directory)
        yield
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()


def _start_munge(directory: Path) -> None:
    key = directory / "munge.key"
    if not key.exists():
        key.touch(0o400)
        key.write_bytes(os.urandom(1024))
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={directory}/munge.{ending}" for option, ending in files.items()]
    # --force: the folder of a test need not be as private as munge would like.
    subprocess.run(["munged", "--force", *options], check=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _idle_nodes(conf: str) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%N %t"],
        env=os.environ | {"SLURM_CONF": conf},
        capture_output=True,
        text=True,
        check=False,
    )
    return len({line.split()[0] for line in done.stdout.splitlines() if line.endswith(" idle")})


def _daemon(pid_file: Path) -> int | None:
    """The process id in the file, if it is still one of ours."""
    try:
        pid = int(pid_file.read_text())
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        return None
    return pid if name in PROGRAMS else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Start or stop a simulated Slurm cluster on this machine.")
    parser.add_argument("action", choices=["start", "stop", "guard"], help="guard: stop when standard input ends")
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    if arguments.action != "start":
        if arguments.action == "guard":
            sys.stdin.read()
        stop(directory)
        return
    try:
        start(directory)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    print(f"export SLURM_CONF={directory}/slurm.conf")


if __name__ == "__main__":
    main()
