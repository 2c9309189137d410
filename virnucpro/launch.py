"""``virnucpro run`` and ``virnucpro init``: the workflow that the package brings, without a clone."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.base.settings import SETTINGS
from virnucpro.base.text import number
from virnucpro.cuda.visible import VISIBLE, device_nodes, list_gpus, visible_devices
from virnucpro.jobs import DISPLAY, OWN_LINES, PLAN_ALONE
from virnucpro.options import add_options, given_values, path

CONFIG = "config.yaml"

EXAMPLES = """examples:
  virnucpro run my.faa --model esm2_t33_650M_UR50D
  virnucpro run a.faa b.faa.gz --cores 16 --dry-run
  virnucpro run --slurm -- --jobs 50
  virnucpro run my.faa -- --report report.html
"""

_PATHS = ("model", "adapter", "classify.classifier", "classify.nucleotide_model", "metadata")
"""Settings that may be a path."""


def add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the two subcommands."""
    run = commands.add_parser(
        "run",
        help="run the whole workflow on FASTA files: tables, summary, plots; on several GPUs or a cluster",
        description="Runs Snakemake on the workflow that the package brings, and says with which command. Settings "
        "come from config.yaml in the folder of the run, where there is one, and from the options here, which win.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("fasta", nargs="*", help="FASTA files, folders, patterns, or one table of samples (.tsv, .csv)")
    run.add_argument("--cores", default="all", help="CPU cores to use (default: all)")
    run.add_argument("--gpus", type=int, metavar="N", help="GPUs to use, a job each (default: all that are here)")
    run.add_argument("--slurm", action="store_true", help="submit jobs to Slurm instead of running them here")
    run.add_argument("--directory", type=path, metavar="FOLDER", help="where results go (default: this folder)")
    run.add_argument("--configfile", type=path, metavar="FILE", help="settings, where config.yaml is another file")
    run.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, and how long it would take")
    run.add_argument("-v", "--verbose", action="store_true", help="show a block for each job, as Snakemake does")
    add_options(run, [key for key in SETTINGS if key != "samples"], with_defaults=False)
    run.set_defaults(run=_run, rest=[])

    init = commands.add_parser("init", help="write a config.yaml with every setting explained into this folder")
    init.add_argument("fasta", nargs="*", help="the FASTA files to put into it (default: my.faa)")
    init.set_defaults(run=_init)

    docs = commands.add_parser("docs", help="list the pages of the documentation and say where they are, or show one")
    docs.add_argument("page", nargs="?", help="the page to show")
    docs.set_defaults(run=_docs)


def workflow_folder() -> Path:
    """The folder of workflow, settings and environments: beside the package in a clone, inside of it when installed.

    Raises:
        UserError: neither is there.
    """
    package = Path(__file__).absolute().parent
    for folder in (package / "shipped", package.parent):
        if (folder / "workflow" / "Snakefile").is_file():
            return folder
    raise UserError(f"the workflow is not in {package}: install virnucpro from its wheel, or work in a clone")


def snakemake_command(given: argparse.Namespace) -> list[str]:
    """The arguments of ``snakemake`` for what was asked for.

    Raises:
        UserError: nothing to embed is named, or a setting is not allowed.
    """
    folder = workflow_folder()
    if not given.fasta and not given.configfile and not Path(given.directory or "", CONFIG).is_file():
        raise UserError(
            f"no FASTA file is named, and there is no {CONFIG} in {Path(given.directory or '').absolute()}: name one, "
            "or let virnucpro init write one"
        )
    command = ["--snakefile", str(folder / "workflow" / "Snakefile")]
    if given.slurm:
        command += ["--profile", str(folder / "workflow" / "profiles" / "slurm")]
    else:
        command += ["--cores", given.cores]
        found = len(visible_devices(os.environ.get(VISIBLE), list_gpus(), device_nodes()))
        gpus = found if given.gpus is None else given.gpus
        if gpus > found:
            print(f"WARNING: {number(gpus, 'GPU')} asked for, and {found} found here", file=sys.stderr)
        command += ["--resources", f"gpu={gpus}"] if gpus else []
    command += ["--directory", str(given.directory)] if given.directory else []
    command += ["--configfile", str(given.configfile)] if given.configfile else []
    command += ["--dry-run"] if given.dry_run else []
    settings = _config(given)
    command += ["--config", *(f"{key}={_text(value)}" for key, value in settings.items())] if settings else []
    return [*command, *given.rest]


def _config(given: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, groups as mappings; paths mean the same from the folder of the run."""
    settings: dict[str, Any] = {}
    if given.fasta:
        files = [_seen_from(given.directory, file) for file in given.fasta]
        settings["samples"] = files[0] if len(files) == 1 else files
    for key, value in given_values(given, [key for key in SETTINGS if key != "samples"]).items():
        group, _, name = key.rpartition(".")
        if key in _PATHS and Path(value).exists():
            value = _seen_from(given.directory, value)
        if key == "reuse":
            value = [_seen_from(given.directory, each) for each in value]
        (settings.setdefault(group, {}) if group else settings)[name] = value
    return settings


def _seen_from(directory: Path | None, file: str) -> str:
    return file if directory is None else str(Path(file).expanduser().absolute())


def _text(value: Any) -> str:
    return value if isinstance(value, str) and re.fullmatch(r"[\w./@+-]+", value) else json.dumps(value)


def _run(given: argparse.Namespace) -> None:
    if find_spec("snakemake") is None:
        raise UserError('virnucpro run needs Snakemake, which is not installed here: pip install "virnucpro[workflow]"')
    command = snakemake_command(given)
    print(f"$ {shlex.join(['snakemake', *command])}", file=sys.stderr, flush=True)
    if given.verbose or given.dry_run:
        os.environ[DISPLAY] = OWN_LINES if given.verbose else PLAN_ALONE
    # In the place of this process, so that signals reach Snakemake and nothing else.
    os.execv(sys.executable, [sys.executable, "-m", __name__, *command])


def start_snakemake() -> None:
    """Snakemake, of which Ctrl-C in the seconds before it takes that itself is a line too."""

    def interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("Stopped by Ctrl-C before anything was begun.", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = interrupted
    from snakemake.cli import main

    main()


def _init(given: argparse.Namespace) -> None:
    target = Path(CONFIG)
    if target.exists():
        raise UserError(f"{target.absolute()} is there already: it is left as it is")
    text = (workflow_folder() / CONFIG).read_text(encoding="utf-8")
    with atomic_path(target) as temporary:
        temporary.write_text(config_for(text, given.fasta or ["my.faa"]), encoding="utf-8")
    print(f"{target}: every setting with its default; now: virnucpro run")


def _docs(given: argparse.Namespace) -> None:
    folder = workflow_folder()
    pages = {path.stem: path for path in (folder / "README.md", *sorted((folder / "docs").glob("*.md")))}
    if given.page is None:
        width = max(map(len, pages))
        for name, path in pages.items():
            with path.open(encoding="utf-8") as file:
                print(f"{name:{width}}  {file.readline().strip().strip('# ')}")
        print(f"These pages are in {folder / 'docs'}")
        return
    page = pages.get(Path(given.page).stem)
    if page is None:
        raise UserError(f"there is no page {given.page!r}: {', '.join(pages)}")
    print(page.read_text(encoding="utf-8"), end="")


def config_for(text: str, fasta: Sequence[str]) -> str:
    """The shipped settings with a user's files in the place of the example."""
    samples = fasta[0] if len(fasta) == 1 else list(fasta)
    lines = text.splitlines(keepends=True)
    (place,) = [number for number, line in enumerate(lines) if line.startswith("samples: ")]
    lines[place] = f"samples: {_text(samples)}\n"
    return "".join(lines)


if __name__ == "__main__":
    start_snakemake()
