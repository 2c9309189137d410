# The configuration, the package's place, and the paths that several rules use.
import os
import re
import sys
from pathlib import Path

WORKFLOW = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
ROOT = WORKFLOW.parent

# Jobs find the package where the workflow is, in conda environments and on cluster nodes too.
if (ROOT / "virnucpro").is_dir():
    sys.path.insert(0, str(ROOT))
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(ROOT), os.getenv("PYTHONPATH")])
        )
    }

from virnucpro.slurm.resources import slurm_resources
from virnucpro.slurm.sizing import embed_memory_mb, embed_minutes
from virnucpro.base.records import read_record
from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.config import load_config, planning_architecture
from virnucpro.base.errors import UserError
from virnucpro.storage.tables import FOLDERS, TABLES

if Path("config.yaml").is_file():

    configfile: "config.yaml"

elif not config and (ROOT / "config.yaml").is_file():

    configfile: str(ROOT / "config.yaml")


try:
    run = load_config(config, WORKFLOW / "schemas" / "config.schema.yaml", beside=ROOT)
except UserError as error:
    sys.exit(f"error: {error}")

WEIGHTS = run.resources / f"{run.model_name}.safetensors"
WEIGHTS_MANIFEST = run.resources / f"{run.model_name}.json"
GPU_REPORT = run.results / "gpu.json"
SAMPLE = run.results / "{sample}"
TRANSLATED = SAMPLE / "translated.faa"
CHUNKS = SAMPLE / "chunks"
CHUNK_FILE = SAMPLE / "tensors" / "{chunk}.safetensors"
LOGS = run.results / "logs"
BENCHMARKS = run.results / "benchmarks"
SUMMARY = run.results / "summary.tsv"
RUN_PLOTS = run.results / "plots"
SAMPLE_PLOTS = SAMPLE / "plots"

# On Slurm: Ampere or newer where available, and the partition that has GPUs.
GPU_JOB = slurm_resources(workflow, run.prefer_features)


wildcard_constraints:
    sample="|".join(map(re.escape, run.samples)),
    chunk=r"chunk_\d+",


def proteins_of(wildcards):
    """The protein FASTA files of a sample: its own, or what its contigs are translated to."""
    if run.input == "nucleotide":
        return [str(TRANSLATED).format(sample=wildcards.sample)]
    return run.samples[wildcards.sample]


def chunk_files_of(sample):
    """The chunk files of a sample, known once it has been split."""
    folder = Path(checkpoints.split_proteins.get(sample=sample).output.chunks)
    names = sorted(path.stem for path in folder.glob("chunk_*.json"))
    return expand(CHUNK_FILE, sample=sample, chunk=names)


def chunk_files(wildcards):
    return chunk_files_of(wildcards.sample)


def all_chunk_files(wildcards):
    return [file for sample in run.samples for file in chunk_files_of(sample)]


def embed_memory(wildcards, input, attempt):
    return embed_memory_mb(
        planning_architecture(run.model),
        read_record(Path(input.chunk_manifest), ChunkManifest),
        layers=len(run.layers),
        mean="mean" in run.pooling,
        per_residue="per_residue" in run.pooling,
        gpus=run.gpus_per_job,
        attempt=attempt,
    )


def embed_time(wildcards, input, threads, attempt):
    return embed_minutes(
        planning_architecture(run.model),
        read_record(Path(input.chunk_manifest), ChunkManifest),
        gpus=run.gpus_per_job,
        threads=threads,
        attempt=attempt,
    )


def gpu_report(wildcards):
    """The GPU report: ancient for a finished chunk, which no new report makes stale.

    Not for one that is missing: when a checkpoint ends while detect_gpu runs and its file is already there, Snakemake
    (seen with 9.27) forgets all jobs whose only tie to a running job is ancient, and ends without them.
    """
    chunk_file = str(CHUNK_FILE).format(sample=wildcards.sample, chunk=wildcards.chunk)
    return ancient(GPU_REPORT) if Path(chunk_file).exists() else GPU_REPORT


def table(name):
    path = SAMPLE / TABLES[name]
    return directory(path) if name in FOLDERS else path


def all_tables():
    """What the merges make, of every sample and in every format: gone or newly asked for, it is made again."""
    files = [SAMPLE / TABLES[name] for name in run.formats]
    return expand([*files, SAMPLE / "embeddings.json"], sample=run.samples)


def sample_plots():
    return expand(
        SAMPLE_PLOTS / "{plot}.svg",
        sample=run.samples,
        plot=["lengths", "sequences", "map"],
    )


def closing_summary():
    """What closes the run; a run of everything that has not made everything ends with an error."""
    chosen = workflow.dag_settings
    parts = (chosen.targets, chosen.target_jobs, chosen.until, chosen.omit_from)
    if any(parts) or chosen.batch is not None:
        return ""
    wanted = [
        str(SUMMARY),
        *expand(str(SAMPLE / "embeddings.json"), sample=run.samples),
    ]
    missing = [file for file in wanted if not Path(file).exists()]
    if missing:
        sys.exit(
            f"error: Snakemake ended without {', '.join(missing)}: run the same command again to go on"
        )
    return SUMMARY.with_suffix(".txt").read_text(encoding="utf-8")


if getattr(workflow.output_settings, "dryrun", False):
    from virnucpro.report.plan import planned_text

    logger.info(planned_text(run))
