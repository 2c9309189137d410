# The configuration, the package's place, and the paths that several rules use.
import atexit
import os
import re
import shlex
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

HERE = workflow.current_basedir.get_path_or_uri(secret_free=True)
# The clone that this file is in; none where Snakemake fetches the workflow by itself, from a Git repository or server.
CLONE = None if "://" in HERE else Path(HERE).parents[1]

# Jobs find the package where the workflow is, in conda environments and on cluster nodes too; that of a wheel is installed.
has_package = CLONE is not None and (CLONE / "virnucpro").is_dir()
if has_package:
    sys.path.insert(0, str(CLONE))
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(CLONE), os.getenv("PYTHONPATH")])
        )
    }

# Snakemake (seen with 9.27) writes the interpreter's path into shell commands as it is, spaces and all.
if Path(sys.executable).exists():
    sys.executable = shlex.quote(sys.executable)

try:
    from virnucpro.base.errors import UserError
    from virnucpro.base.atomic import alone_in
    from virnucpro.base.limits import sentence_for
    from virnucpro.base.records import read_record
    from virnucpro.chunking.manifest import ChunkManifest
    from virnucpro.chunking.size import BASES
    from virnucpro.config import load_config, merged
    from virnucpro.config_files import config_sources
    from virnucpro.cuda.visible import has_gpu
    from virnucpro.display import take_over
    from virnucpro.models.reference import planning_architecture
    from virnucpro.plan import MOST_LINES, plan, plan_text, why_no_room
    from virnucpro.report import CALL_PLOTS as PLOTS_OF_CALLS
    from virnucpro.report import RUN_PLOTS as PLOTS_OF_RUN
    from virnucpro.report import SAMPLE_PLOTS as PLOTS_OF_SAMPLE
    from virnucpro.run_state import (
        calls_state,
        end_dates_to_come,
        other_samples,
        run_state,
        samples_together,
        stale_tables,
        unasked_calls,
    )
    from virnucpro.slurm.resources import slurm_resources, why_no_slurm
    from virnucpro.slurm.resources import embed_memory_mb, embed_minutes
    from virnucpro.storage.sample_files import REUSE_INDEX
    from virnucpro.storage.state import MISSING
    from virnucpro.storage.tables import TABLES
except ImportError as error:
    sys.exit(
        f"error: {HERE} needs the package virnucpro of the same version in {sys.prefix} ({error}): install it with "
        'pip install "virnucpro[workflow] @ git+URL@TAG", or run the workflow from a clone'
    )
if not has_package and workflow.deployment_settings.deployment_method:
    sys.exit(
        "error: the environments of conda hold what virnucpro needs but not virnucpro itself, which a clone brings: "
        "clone the repository and give the path of its workflow/Snakefile, or leave conda out"
    )


# What a run shows; None for Snakemake's own lines.
display = take_over(workflow) if workflow.is_main_process else None


def device_of_jobs():
    """Whether embed jobs will find a GPU ("gpu") or not ("cpu"), for chunks of automatic size.

    Jobs of this machine find what is here, those of a cluster what they ask for. The process that plans says it to its
    jobs, which would find another answer elsewhere.
    """
    if workflow.is_main_process:
        # Which executor it is, Snakemake (seen with 9.27) tells later, and in a dry run never: a cluster's has a
        # number of jobs, a local one of cores. In a dry run -j is taken for the former.
        given = {argument.partition("=")[0] for argument in sys.argv}
        named = {"-e", "--executor", "--profile"} & given or os.getenv(
            "SNAKEMAKE_PROFILE"
        )
        is_dry = getattr(workflow.output_settings, "dryrun", False)
        on_cluster = workflow.resource_settings.nodes and (named or not is_dry)
        os.environ[DEVICE] = "gpu" if on_cluster or has_gpu() else "cpu"
    return os.getenv(DEVICE, "gpu")


DEVICE = "VIRNUCPRO_DEVICE_OF_JOBS"

try:
    sources = config_sources(workflow, config, CLONE)
    run = load_config(*sources, device=device_of_jobs())
except (UserError, OSError) as error:  # of another user's files
    sys.exit(f"error: {sentence_for(error)}")
if not os.access(".snakemake" if os.path.isdir(".snakemake") else ".", os.W_OK):
    sys.exit(
        f"error: Snakemake keeps its records in the working folder, {os.getcwd()}, where this user may not write: run it "
        "in another folder (--directory)"
    )
config = merged(sources)  # what scripts and reports see: as it was given
if workflow.is_main_process:
    read = ", ".join(source.name for source in sources) or "none are given"
    logger.info(f"Settings: {read}; the rest are defaults.")

UNTIL_THE_END = ExitStack()


def hold_results():
    """Keep other runs out of the results until this process ends; the reason, where another one is in there.

    Snakemake's own lock lies in the working folder, and runs from several of those may share their results.
    """
    try:
        UNTIL_THE_END.enter_context(alone_in(run.results))
    except UserError as error:
        return str(error)


# The results are held before they are looked at. Who looks while another run writes may go on as long as it starts no
# job (see onstart): dry runs, reports, a run with nothing to do. So may who finds none: folders are made with jobs.
DRY_RUN = getattr(workflow.output_settings, "dryrun", False)
IS_HELD = workflow.is_main_process and not DRY_RUN and run.results.is_dir()
try:
    WHY_NOT_HELD = hold_results() if IS_HELD else None

    # What is there, compared by content with what is asked for.
    state = run_state(run)
    calls = calls_state(run, state)
    if workflow.is_main_process:
        state.check_sources()
        end_dates_to_come(state, run.results)
        if calls is not None:
            end_dates_to_come(calls.nucleotides, run.results)
except (UserError, OSError) as error:
    sys.exit(f"error: {sentence_for(error)}")

WEIGHTS = state.weights.file
GPU_REPORT = run.results / "gpu.json"
# What a split is told of earlier results.
REUSE = run.reuse and dict(
    sources=[str(path) for path in run.reuse],
    index=str(run.results / REUSE_INDEX),
    any_device=run.reuse_devices == "any",
)
SAMPLE = run.results / "{sample}"
TRANSLATED = SAMPLE / "translated.faa"
CHUNKS = state.pool.chunks
CHUNK_FILE = state.pool.tensors / "{chunk}.safetensors"
SCORES = SAMPLE / "frame_scores.parquet"
CALLS = SAMPLE / "calls"
LOGS = run.results / "logs"
BENCHMARKS = run.results / "benchmarks"
SUMMARY = run.results / "summary.tsv"
SUMMARY_RECORD = run.results / "summary.json"
MAP = run.results / "map.html"
RUN_PLOTS = run.results / "plots"
OF_THE_RUN = [
    *(SUMMARY.with_suffix(f".{kind}") for kind in ("tsv", "html", "txt", "json")),
    run.results / "chunks.tsv",
    *(RUN_PLOTS / f"{plot}.{kind}" for plot in PLOTS_OF_RUN for kind in ("svg", "png")),
]
SAMPLE_PLOTS = SAMPLE / "plots"

# On Slurm: Ampere or newer where available.
GPU_JOB = slurm_resources(workflow, run.prefer_features)


# Small samples that share jobs, and a pattern of all others; where there are none, one that nothing matches.
TOGETHER = samples_together(run)
WITH_OWN_JOBS = sorted(set(run.samples).difference(*TOGETHER))
ALONE = "|".join(map(re.escape, WITH_OWN_JOBS)) or "(?!)"


wildcard_constraints:
    sample="|".join(map(re.escape, run.samples)),
    chunk=r"chunk_\d+",


@cache
def changed():
    """An input of every step, newer than all that was made before this run: it counts where an output is stale.

    Its content is another one each time, because Snakemake passes over a newer file of the same content.
    """
    marker = Path(".snakemake", "changed_inputs_or_settings").absolute()
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(f"{time.time_ns()}\n")
    return marker


@cache
def ask_for_what_is_named():
    """Let a step that --until, --omit-from or --forcerun name stand for its jobs of several samples, which are rules of
    their own; and let Snakemake miss files of the rules that --until names, as it does with rules that are targets.

    By itself (seen with 9.27) it asks which of them the rules need that are left out, and forgets those at a checkpoint:
    it then ends with "Nothing to be done", or with nothing done, and no error.
    """
    dag = workflow.dag
    if only_embeds():  # which rule all asks for then, and for nothing else
        dag.untilrules = set()
    dag.untilrules |= jobs_of_several(dag.untilrules)
    dag.omitrules |= jobs_of_several(dag.omitrules)
    forced = jobs_of_several({rule.name for rule in dag.forcerules})
    dag.forcerules |= {rule for rule in workflow.rules if rule.name in forced}
    last = {rule for rule in workflow.rules if rule.name in dag.untilrules}
    dag.targetrules = {*dag.targetrules, *last}


def jobs_of_several(named):
    """The rules of jobs that do the named steps for several samples."""
    steps = {"merge_embeddings", "plot_sample"} & named
    return {f"{step}_{job}" for step in steps for job in range(len(TOGETHER))}


def tied(why_stale, given=(), **products):
    """A rule's inputs, so that its output is made again for the reason that `why_stale` gives, and for no other.

    What the user has given is tied to nothing (`ancient`): its content has been looked at, and its date says nothing.
    Nor is what is current. What is stale has an input that is newer. What is not current is tied to other rules'
    products always: Snakemake (seen with 9.27) forgets jobs whose every tie to a running job is ancient when a
    checkpoint ends meanwhile.
    """
    products = {
        key: [
            str(file) for file in ([files] if isinstance(files, (str, Path)) else files)
        ]
        for key, files in products.items()
    }
    # Snakemake fails a job whose output is older than an input, be it ancient, as files with a date to come are.
    files = [str(file) for file in given if Path(file).stat().st_mtime < time.time()]
    products["given"] = ancient(files)
    if not workflow.is_main_process:
        return products
    ask_for_what_is_named()
    products["changed"] = [str(changed())]
    # Asked by the process that plans alone: jobs do what they are told.
    reason = why_stale()
    if reason is None and not steps_are_forced():
        # Nor to what is gone: when that is made again for others, Snakemake would run all jobs that name it.
        return {
            key: ancient([file for file in files if Path(file).exists()])
            for key, files in products.items()
        }
    if reason in (None, MISSING):
        products["changed"] = ancient(products["changed"])
    return products


def steps_are_forced():
    """Whether the user wants steps to be run again whatever their state, with what follows from them."""
    return bool(workflow.dag_settings.forceall or workflow.dag_settings.forcerun)


def is_of_a_part():
    """Whether not all of the run is asked for."""
    chosen = workflow.dag_settings
    parts = (chosen.targets, chosen.target_jobs, chosen.until, chosen.omit_from)
    return any(parts) or chosen.batch is not None


ENOUGH_TO_START = 1 << 22
"""Bytes of a FASTA file that are read before a run, to see whether its results will fit on the disk."""


def planned(**enough):
    """What is left to do."""
    return plan(run, state, calls, **enough)


def begin():
    """Say what the run will do; the reason why it does not begin, if there is one."""
    if is_of_a_part():
        if display is not None:
            display.begin("", [], planned)
        return None
    if run.require_gpu and run.device == "cpu":
        return (
            "setting 'require_gpu' is true, and no GPU is found here (virnucpro gpus says more): run it where one is, or "
            "set require_gpu to false for the CPU"
        )
    parts = planned(enough=ENOUGH_TO_START)
    # The disk may not hold what the whole run makes; a part of it is refused by its own jobs.
    why_not = why_no_room(run, parts)
    if why_not is None and display is not None:
        display.begin(plan_text(run, state, parts), parts, planned)
    return why_not


def closing_summary():
    """What closes the run; a run of everything that has not made everything ends with an error."""
    if is_of_a_part():
        return "\n".join(stale_tables(state, calls))
    wanted = [
        str(SUMMARY),
        *expand(str(SAMPLE / "embeddings.json"), sample=run.samples),
        *all_calls(),
    ]
    missing = [file for file in wanted if not Path(file).exists()]
    if missing:
        sys.exit(
            f"error: Snakemake ended without {', '.join(missing)}: run the same command again to go on"
        )
    return SUMMARY.with_suffix(".txt").read_text(encoding="utf-8")


if workflow.is_main_process:
    for folder in other_samples(state, run.results):
        logger.warning(
            f"{run.results / folder} is of an earlier run and is left as it is: no sample here has that name"
        )
    for folder in unasked_calls(state) if calls is None else ():
        logger.warning(
            f"{folder} is of an earlier run and is left as it is: classify is not set now"
        )
    atexit.register(state.digests.save)  # what input functions read is known at the end

if DRY_RUN:
    logger.info(
        plan_text(
            run,
            state,
            planned(),
            MOST_LINES,
        )
    )
    try:
        from virnucpro.foreseen import foreseen
    except ImportError:  # with conda, Snakemake's own Python has no numpy
        pass
    else:
        try:
            if said := foreseen(run, state, GPU_REPORT):
                logger.info(said)
        except UserError as error:
            sys.exit(f"error: {error}")
