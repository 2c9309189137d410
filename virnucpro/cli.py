"""The command ``virnucpro``, and what it does without the workflow: gpus, doctor, embed."""

from __future__ import annotations

import argparse
import inspect
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from virnucpro import __version__
from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.base.settings import LONGEST, default
from virnucpro.base.text import clock_time, duration, number, printable
from virnucpro.jobs import job
from virnucpro.launch import add_run
from virnucpro.moving_line import MovingLine
from virnucpro.options import (
    EMBEDDING,
    LONG_PROTEINS,
    POLICIES,
    TABLES,
    add_options,
    in_options,
    path,
    speaking,
    values,
)
from virnucpro.steps import add_steps
from virnucpro.store import add_store

EXIT_CODES = """exit codes:
  0    done
  1    something that you can fix: the last line says what, and how
  2    an option that there is not, or that lacks its value
  130  Ctrl-C; 128 and the signal's number after another signal (virnucpro run: 1, as Snakemake has it)

virnucpro --print-completion bash (zsh, tcsh) prints what completes commands and options in your shell.
"""

OPTIONS = ("model", "adapter", *EMBEDDING, *POLICIES, "chunk_residues", "reuse", "reuse_devices", *TABLES)
"""Settings of the workflow that ``virnucpro embed`` has too."""

STDIN, STDIN_FILE = Path("-"), "stdin.fasta"
"""Standard input as a FASTA file, and the name under which the folder of results keeps it."""

EMBED_EXAMPLES = """examples:
  virnucpro embed my.faa -o out --model esm2_t33_650M_UR50D
  zcat *.faa.gz | virnucpro embed - -o out --pooling mean per_residue --formats hdf5
  virnucpro embed my.faa -o out --devices cuda:0 cuda:1 --precision bf16

The same call goes on where one was stopped. Prints the path of the table. Exit codes: see virnucpro --help.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the subcommands; a user's mistake ends in one sentence and exit code 1."""
    given = _parsed(sys.argv[1:] if arguments is None else arguments)
    with job(given.command, shows=_shown_by(given)):
        speaking(in_options)(given.run)(given)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    if "--" not in arguments or arguments[:1] != ["run"]:
        return _parser().parse_args(arguments)
    end = arguments.index("--")
    given = _parser().parse_args(arguments[:end])
    given.rest = list(arguments[end + 1 :])  # Snakemake's own options
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="virnucpro",
        description="Embed proteins with ESM-2: virnucpro run for samples, tables and a report, on one machine or a "
        "cluster; virnucpro embed for tables alone.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if find_spec("shtab") is not None:
        import shtab

        shtab.add_argument_to(parser, ["--print-completion"])
    parser.add_argument("--version", action="version", version=f"virnucpro {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    gpus = commands.add_parser("gpus", help="say which GPUs are here and what runs on them")
    gpus.set_defaults(run=_gpus)

    doctor = commands.add_parser(
        "doctor",
        help="compare our numbers and speed with fair-esm's, on this machine",
        description="Embed random proteins with every precision that the device computes, and compare the results with "
        "fair-esm in float32 on the same device and weights.",
    )
    doctor.add_argument("--model", default=default("model"), help="name or checkpoint (default: %(default)s)")
    doctor.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")
    doctor.add_argument("--proteins", type=int, default=24, help="how many to run (default: %(default)s)")
    doctor.add_argument("--longest", type=int, default=LONGEST, help="residues of the longest (default: %(default)s)")
    doctor.set_defaults(run=_doctor)

    _add_embed(commands)
    add_run(commands)
    add_steps(commands)
    add_store(commands)
    return parser


# The imports stand in the functions because torch takes seconds to load.


def _gpus(given: argparse.Namespace) -> None:
    from virnucpro.gpu_report import format_report, gpu_report

    print("\n".join(map(printable, format_report(gpu_report()).splitlines())))


def _doctor(given: argparse.Namespace) -> None:
    import torch

    from virnucpro.doctor import run_doctor

    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    findings = run_doctor(
        given.model, device, proteins=given.proteins, longest=given.longest, logger=logging.getLogger("virnucpro")
    )
    if not all(finding.passed for finding in findings):
        raise SystemExit(1)


def _add_embed(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    embed = commands.add_parser(
        "embed",
        help="embed FASTA files into a folder, without Snakemake",
        epilog=EMBED_EXAMPLES,
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


def _shown_by(given: argparse.Namespace) -> int:
    """The level of messages that a command shows: warnings by default for ``embed``, everything for others."""
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
    from virnucpro.report.samples import notes, read_sample, work_of
    from virnucpro.storage.report_record import REPORT

    sample = read_sample(folder / REPORT)
    work = work_of(sample.chunks)
    devices = ", ".join(dict.fromkeys(chunk.device for chunk in sample.chunks)) or "nothing"
    line.write(
        f"Embedded {number(sample.counts['records'], 'protein')} with {sample.provenance.model} in "
        f"{duration(work.seconds)} on {devices}.",
        *(f"NOTE: {note}" for note in notes([sample])),
    )


if __name__ == "__main__":
    main()
