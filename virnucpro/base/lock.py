"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virnucpro.base.atomic import cannot_write
from virnucpro.base.errors import UserError


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder for the block; the kernel frees it when the process ends, however it ends.

    Where the file system knows no locks, nothing is held.

    Raises:
        UserError: another process holds it, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise cannot_write(folder, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process writes to {folder}: wait until it has ended, or choose another folder"
            ) from None
        except OSError:
            pass
        yield
