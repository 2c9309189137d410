"""What the system allows a process (memory, threads, size of files, room on a disk), and errors that come of it: no
defects of ours."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import signal
import threading
from contextlib import suppress
from pathlib import Path

from virnucpro.base.errors import UserError
from virnucpro.base.text import size

STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a step: Ctrl-C, a scheduler's."""

LEAST_MEMORY = 1 << 29
"""Bytes of address space that every step needs. With less, libraries in C end the process by themselves."""

_NO_MEMORY = re.compile(
    "allocate memory|unable to allocate|not enough memory|bad_alloc|os error 12|"
    "failed to map segment|could not create a (primitive|memory)",
    re.IGNORECASE,
)
"""What torch, NumPy, Arrow, the loader of libraries and oneDNN say (the last when it compiles a product's code)."""

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sentence_for(error: BaseException) -> str | None:
    """The sentence that ends a step: of a user's mistake, or a limit of the system; None for a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return _out_of_memory(error)
    if isinstance(error, BlockingIOError) or "can't start new thread" in str(error):
        return _out_of_threads()
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}; fix that and run the same command again"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever type a library gives it, says that there is not enough main memory."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and bool(_NO_MEMORY.search(str(error))))


def check_limits() -> None:
    """Refuse to begin where libraries could not even start: they would end the process without a word of ours.

    Raises:
        UserError: less memory than any step needs, or fewer threads than there are cores.
    """
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= allowed < LEAST_MEMORY:
        raise UserError(
            f"this process may use {size(allowed)} of memory (`ulimit -v`), and every step needs {size(LEAST_MEMORY)} "
            "or more: raise the limit and run the same command again"
        )
    gate = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(usable_cores()):
            thread = threading.Thread(target=gate.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        raise UserError(_out_of_threads()) from None
    finally:
        gate.set()
        for thread in threads:
            thread.join()


SPINS = "1000"
"""Turns that a thread waits for others before it sleeps: some microseconds."""


def let_waiting_threads_sleep() -> None:
    """Have threads that wait for each other in torch's products sleep soon, unless the environment says how they wait.

    By itself the OpenMP library of torch for Linux spins for milliseconds at the end of each operation. Where another
    process wants the same core, it waits for the one that spins, and the one that spins for it. The environment is read
    when the library is loaded, so this is to be called before torch is imported.
    """
    if not any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def keep_freed_memory() -> None:
    """Have glibc keep what arrays of up to 256 MiB leave for those that follow, unless the environment says otherwise.

    By itself it gives such memory back to the system at once, which gives it again page by page, each set to zero: a
    tenth of the time of a model on a CPU. What a process takes at most grows by about a tenth.
    """
    if not any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")):
        with suppress(AttributeError, OSError):  # another C library
            for option, size_in_bytes in ((_MMAP_THRESHOLD, 1 << 28), (_TRIM_THRESHOLD, 1 << 30)):
                ctypes.CDLL(None).mallopt(option, size_in_bytes)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""As ``malloc.h`` of glibc numbers them (mallopt(3)); versions before 2.34 take no more than 32 MiB for the second."""


def _out_of_memory(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    limit, where = _memory_limit()
    return (
        f"not enough main memory{f' ({said[0][:200]})' if said else ''}: {where} allows {size(limit)}. Give this step "
        "more, end what else uses it, or make the step smaller (chunk_residues for the embedding, shorter records for "
        "the split), and run the same command again"
    )


def _memory_limit() -> tuple[int, str]:
    """Bytes that this process may use, and who says so: the least of what there is."""
    limits = [(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine")]
    if (allowed := resource.getrlimit(resource.RLIMIT_AS)[0]) >= 0:
        limits.append((allowed, "`ulimit -v`"))
    with suppress(OSError, ValueError):
        limits.append((int(_CGROUP.read_text()), "the job's control group"))
    return min(limits)


def _out_of_threads() -> str:
    threads, memory = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_AS))
    limits = [f"`ulimit -u` allows this user {threads:,}"] if threads >= 0 else []
    limits += [f"`ulimit -v` allows {size(memory)} of memory, of which each takes its part"] if memory >= 0 else []
    return (
        f"no further thread or process can be started ({'; '.join(limits) or 'the machine or the container is full'}): "
        "raise the limit or end other programs, and run the same command again"
    )


def why_not_written(error: OSError) -> str:
    """Why something could not be written, and the way out, as the end of a sentence."""
    reason = os.strerror(error.errno) if error.errno is not None else error.strerror or str(error)
    if error.errno == errno.EFBIG:
        allowed = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        what = f"files of {size(allowed)} (`ulimit -f`)" if allowed >= 0 else "no files of that size"
        return f"{reason}: this process may write {what}; raise the limit and run the same command again"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{reason}: a file is where a folder should be; choose another place for the results"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{reason}: choose another place for the results, or have this one opened to you"
    return f"{reason}; free space there or choose another place for the results"


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write where ``path`` is, or will be; a quota may allow fewer, and shows later.

    Raises:
        OSError: the place cannot be looked at.
    """
    there = Path(path).absolute()
    while not there.exists():
        there = there.parent
    found = os.statvfs(there)
    return found.f_bavail * found.f_frsize


def check_space(path: Path, needed: int, what: str, *, largest: int = 0) -> None:
    """Refuse work whose result can't be written.

    Args:
        path: where it goes.
        needed: bytes that it takes at least.
        what: the work, at the beginning of a sentence.
        largest: bytes of its largest file.

    Raises:
        UserError: there is less room than that, or the process may not write a file of that size.
    """
    try:
        free = free_bytes(path)
    except OSError:
        return  # what writes there says better what is wrong
    if needed > free:
        raise UserError(no_room(path, f"{what} takes", needed, free))
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if 0 <= allowed < largest:
        raise UserError(
            f"{what} takes a file of {size(largest)} in {path}, and this process may write files of {size(allowed)} "
            "(`ulimit -f`): raise the limit and run the same command again"
        )


def no_room(path: Path, what: str, needed: int, free: int) -> str:
    """The sentence for what does not fit; ``what`` begins it, verb included."""
    return (
        f"{what} {size(needed)} or more in {path}, where {size(free)} is free: free space there or choose another "
        "place for the results, and run the same command again"
    )
