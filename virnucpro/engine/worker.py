"""The process of one device: proteins come in on standard input, embeddings go out on standard output.

Started by :mod:`virnucpro.engine.devices` as ``python -m virnucpro.engine.worker``; a program of
its own rather than ``multiprocessing``'s, whose spawned children run the parent's script again.

Standard input: one line of JSON, then nothing; its end means that the parent has gone, and ends the
process. Standard output: lines of JSON, ``{"log": [level, text]}``, ``{"error": sentence}`` or
``{"defect": traceback}``, and last ``{"result": {...}, "arrays": [[name, dtype, shape], ...]}`` with
the arrays' bytes behind it in that order.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from virnucpro.base.errors import UserError


class _Events(logging.Handler):
    """Sends log lines to the parent."""

    def __init__(self, out: BinaryIO) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        send(self._out, {"log": [record.levelno, record.getMessage()]})


def send(out: BinaryIO, event: dict[str, Any]) -> None:
    """Write one line of JSON."""
    out.write(json.dumps(event).encode() + b"\n")
    out.flush()


def main() -> int:
    # Whatever libraries print must not mix with the events.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logger = logging.getLogger("virnucpro.worker")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_Events(out))
    try:
        _work(task, out, logger)
    except UserError as error:
        send(out, {"error": str(error)})
        return 1
    except Exception:
        send(out, {"defect": traceback.format_exc()})
        return 1
    return 0


def _work(task: dict[str, Any], out: BinaryIO, logger: logging.Logger) -> None:
    import numpy as np
    import torch

    from virnucpro.base.records import from_entries
    from virnucpro.base.settings import EmbeddingSettings
    from virnucpro.engine.embed import Protein, embed_proteins
    from virnucpro.weights.manifest import WeightsManifest

    torch.set_num_threads(task["threads"])
    settings: dict[str, Any] = task["settings"]
    settings |= {key: tuple(value) for key, value in settings.items() if isinstance(value, list)}
    found = embed_proteins(
        [Protein(name, sequence.encode()) for name, sequence in task["proteins"]],
        Path(task["weights"]),
        from_entries(task["manifest"], WeightsManifest, Path(task["weights"])),
        EmbeddingSettings(**settings),
        device=task["device"],
        logger=logger,
    )
    arrays = {
        "lengths": found.lengths,
        "windows": found.windows,
        "embedded": found.embedded,
        "precision": found.precision,
        **{f"mean.{layer}": values for layer, values in found.mean.items()},
        **{f"residues.{layer}": values for layer, values in found.residues.items()},
    }
    result = {"precisions": found.precisions, "provenance": found.provenance, "statistics": found.statistics}
    described = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    send(out, {"result": result, "arrays": described})
    for array in arrays.values():
        out.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    out.flush()


def _end_with_parent() -> None:
    # The descriptor itself: a thread inside of a buffered reader would abort the interpreter's exit.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
