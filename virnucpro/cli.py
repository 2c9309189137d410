"""The command ``virnucpro``: what is useful without the workflow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from virnucpro import __version__
from virnucpro.base.settings import LONGEST
from virnucpro.base.text import printable
from virnucpro.call_steps import add_call_steps
from virnucpro.jobs import job
from virnucpro.launch import add_run
from virnucpro.options import EMBEDDING, LONG_PROTEINS, POLICIES, TABLES, add_options, path, values
from virnucpro.steps import add_steps

OPTIONS = ("model", "adapter", *EMBEDDING, *POLICIES, "chunk_residues", *TABLES)
"""Settings of the workflow that ``virnucpro embed`` has too."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the subcommands; a user's mistake ends in one sentence and exit code 1."""
    given = _parsed(sys.argv[1:] if arguments is None else arguments)
    with job(given.command):
        given.run(given)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    if "--" not in arguments or arguments[:1] != ["run"]:
        return _parser().parse_args(arguments)
    end = arguments.index("--")
    given = _parser().parse_args(arguments[:end])
    given.rest = list(arguments[end + 1 :])  # Snakemake's own options
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="virnucpro", description="Embed proteins with ESM-2. For many samples, or a cluster, use the workflow."
    )
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
    doctor.add_argument("--model", default="esm2_t33_650M_UR50D", help="name or checkpoint (default: %(default)s)")
    doctor.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")
    doctor.add_argument("--proteins", type=int, default=24, help="how many to run (default: %(default)s)")
    doctor.add_argument("--longest", type=int, default=LONGEST, help="residues of the longest (default: %(default)s)")
    doctor.set_defaults(run=_doctor)

    embed = commands.add_parser("embed", help="embed FASTA files into a folder, without Snakemake")
    embed.add_argument("fasta", nargs="+", type=path, help="protein FASTA, plain or packed")
    embed.add_argument("-o", "--output", type=path, required=True, metavar="FOLDER", help="where results go")
    add_options(embed, OPTIONS)
    embed.set_defaults(run=_embed)

    add_run(commands)
    add_steps(commands)
    add_call_steps(commands)
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


def _embed(given: argparse.Namespace) -> None:
    import logging

    from virnucpro.api import embed

    others = [key for key in OPTIONS if key not in LONG_PROTEINS]
    options = {**values(given, others), "long_proteins": values(given, LONG_PROTEINS)}
    print(embed(given.fasta, given.output, **options, logger=logging.getLogger("virnucpro")))


if __name__ == "__main__":
    main()
