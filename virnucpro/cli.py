"""The command ``virnucpro``: what is useful without the workflow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from virnucpro import __version__
from virnucpro.base.settings import LONGEST, default
from virnucpro.base.text import printable
from virnucpro.call_steps import add_call_steps
from virnucpro.embed_command import add_embed, said_of
from virnucpro.jobs import job
from virnucpro.launch import add_run
from virnucpro.options import in_options, speaking
from virnucpro.steps import add_steps
from virnucpro.store import add_store

EXIT_CODES = """exit codes:
  0    done
  1    something that you can fix: the last line says what, and how
  2    an option that there is not, or that lacks its value
  130  Ctrl-C; 128 and the signal's number after another signal (virnucpro run: 1, as Snakemake has it)

virnucpro --print-completion bash (zsh, tcsh) prints what completes commands and options in your shell.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the subcommands; a user's mistake ends in one sentence and exit code 1."""
    given = _parsed(sys.argv[1:] if arguments is None else arguments)
    with job(given.command, shows=said_of(given)):
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

    add_embed(commands)
    add_run(commands)
    add_steps(commands)
    add_call_steps(commands)
    add_store(commands)
    return parser


# The imports stand in the functions because torch takes seconds to load.


def _gpus(given: argparse.Namespace) -> None:
    from virnucpro.gpu_report import format_report, gpu_report

    print("\n".join(map(printable, format_report(gpu_report()).splitlines())))


def _doctor(given: argparse.Namespace) -> None:
    import logging

    import torch

    from virnucpro.doctor import run_doctor

    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    findings = run_doctor(
        given.model, device, proteins=given.proteins, longest=given.longest, logger=logging.getLogger("virnucpro")
    )
    if not all(finding.passed for finding in findings):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
