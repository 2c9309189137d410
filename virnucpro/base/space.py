"""Whether what is to be written fits on the disk: asked before the work, not found out after it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from virnucpro.base.errors import UserError
from virnucpro.base.text import size


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
