"""``virnucpro embed``: FASTA files, or standard input, to tables in a folder, without Snakemake."""

from __future__ import annotations

import argparse
import inspect
import logging
import shutil
import sys
import time
from pathlib import Path

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.base.text import clock_time, duration, number
from virnucpro.moving_line import MovingLine
from virnucpro.options import EMBEDDING, LONG_PROTEINS, POLICIES, TABLES, add_options, path, values

OPTIONS = ("model", "adapter", *EMBEDDING, *POLICIES, "chunk_residues", "reuse", "reuse_devices", *TABLES)
"""Settings of the workflow that ``virnucpro embed`` has too."""

STDIN, STDIN_FILE = Path("-"), "stdin.fasta"
"""Standard input as a FASTA file, and the name under which the folder of results keeps it."""

EXAMPLES = """examples:
  virnucpro embed my.faa -o out --model esm2_t33_650M_UR50D
  zcat *.faa.gz | virnucpro embed - -o out --pooling mean per_residue --formats hdf5
  virnucpro embed my.faa -o out --devices cuda:0 cuda:1 --precision bf16

The same call goes on where one was stopped. Prints the path of the table. Exit codes: see virnucpro --help.
"""


def add_embed(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    embed = commands.add_parser(
        "embed",
        help="embed FASTA files into a folder, without Snakemake",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    embed.add_argument("fasta", nargs="+", type=path, help="protein FASTA, plain or packed; - is standard input")
    embed.add_argument("-o", "--output", type=path, required=True, metavar="FOLDER", help="where results go")
    embed.add_argument("--devices", nargs="+", metavar="DEVICE", help="cpu, cuda:0, ... (default: all GPUs, else cpu)")
    embed.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's number)")
    embed.add_argument(
        "--weights-folder",
        type=path,
        metavar="FOLDER",
        help="where prepared weights are kept (default: virnucpro/weights in XDG_CACHE_HOME or ~/.cache)",
    )
    how = embed.add_mutually_exclusive_group()
    how.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors and the table's path")
    how.add_argument("-v", "--verbose", action="store_true", help="say what is done, step by step")
    add_options(embed, OPTIONS)
    embed.set_defaults(run=_embed)


def said_of(given: argparse.Namespace) -> int:
    """The level of messages that a command shows: warnings by default for this one, everything for others."""
    if getattr(given, "quiet", False):
        return logging.ERROR
    return logging.WARNING if given.command == "embed" and not given.verbose else logging.INFO


def _embed(given: argparse.Namespace) -> None:
    from virnucpro.api import embed  # torch takes seconds to load

    others = [key for key in OPTIONS if key not in LONG_PROTEINS]
    options = {**values(given, others), "long_proteins": values(given, LONG_PROTEINS)}
    fasta = _with_stdin(given.fasta, given.output)
    line = MovingLine(sys.stderr)
    began: list[float] = []

    def progress(done: int, wanted: int) -> None:
        if not began:
            began.append(time.monotonic())
            line.begin()
        words = number(wanted, "token")
        if done:
            rate = done / max(time.monotonic() - began[0], 1e-9)
            words += f", {rate:,.0f} tokens/s, {clock_time((wanted - done) / rate)} left"
        line.show(done / wanted, words)

    try:
        table = inspect.unwrap(embed)(  # whose sentences are about settings
            fasta,
            given.output,
            **options,
            devices=given.devices,
            threads=given.threads,
            weights_folder=given.weights_folder,
            progress=None if given.quiet or given.verbose else progress,
            logger=logging.getLogger("virnucpro"),
        )
    finally:
        line.close()
    if not given.quiet:
        _close(table.parent, line)
    print(table)


def _with_stdin(files: list[Path], folder: Path) -> list[Path]:
    """The files, with standard input as a file of the folder, which a repeated call compares with what comes then."""
    if STDIN not in files:
        return files
    if files.count(STDIN) > 1:
        raise UserError("standard input (-) is named twice: name it once")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / STDIN_FILE) as temporary, temporary.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return [folder / STDIN_FILE if file == STDIN else file for file in files]


def _close(folder: Path, line: MovingLine) -> None:
    """What was embedded, in a sentence, and what must be known of it."""
    from virnucpro.report.read import read_sample
    from virnucpro.report.summary import notes, work_of
    from virnucpro.storage.report_record import REPORT

    sample = read_sample(folder / REPORT)
    work = work_of(sample.chunks)
    devices = ", ".join(dict.fromkeys(chunk.device for chunk in sample.chunks)) or "nothing"
    line.write(
        f"Embedded {number(sample.counts['records'], 'protein')} with {sample.provenance.model} in "
        f"{duration(work.seconds)} on {devices}.",
        *(f"NOTE: {note}" for note in notes([sample])),
    )
