"""The Snakemake resource of GPU jobs that only Slurm needs: ``slurm_extra``, with ``--prefer`` in it.

It is worked out when Snakemake is about to submit (or shows a dry run), never inside a job. What the user set, in a
profile or on the command line, always wins. The partition is the user's to set, or the Slurm plugin's to choose."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.chunking.size import RESIDUES, Letters
from virnucpro.models.reference import AnySizes
from virnucpro.slurm.cluster import (
    FIRST_VERSION,
    Cluster,
    JobSize,
    ask_cluster,
    parse_gres,
    prefer_option,
    why_not_reached,
)

Resource = Callable[..., str | None]


def slurm_resources(workflow: Any, prefer_features: Sequence[str] = ()) -> dict[str, Resource]:
    """Resource functions for rules whose jobs need a GPU.

    Args:
        workflow: the Snakefile's ``workflow`` object.
        prefer_features: node features to prefer besides those that are known to mean Ampere or newer.

    Returns:
        ``slurm_extra``. It gives None where jobs do not go to Slurm, and Snakemake then leaves it out.
    """
    defaults = workflow.resource_settings.default_resources or {}
    advice = Advice(tuple(prefer_features))

    def slurm_extra(wildcards: Any, input: Any, attempt: int, threads: int, rulename: str) -> str | None:
        if not submits_to_slurm(workflow):
            return None
        job = _Job(workflow, wildcards, input, attempt, threads, rulename)
        own = job.evaluate(defaults["slurm_extra"]) if "slurm_extra" in defaults else None
        partition = job.value("slurm_partition")
        if partition is None and not plugin_chooses_partitions(workflow):
            partition = advice.default_partition
        # --prefer would override a constraint (sbatch's manual), and the user's constraint is a decision.
        prefer = "" if job.value("constraint") else advice.prefer(job.size(), partition)
        return " ".join(filter(None, [own, prefer])) or None

    return {"slurm_extra": slurm_extra}


def submits_to_slurm(workflow: Any) -> bool:
    """Whether this is the process that submits to Slurm, or shows in a dry run what it would submit."""
    plugin = workflow.executor_plugin
    if plugin is None or not workflow.is_main_process:
        return False
    return plugin.name == "slurm" or bool(plugin.common_settings.dryrun_exec)


def why_no_slurm(workflow: Any) -> str | None:
    """Why jobs that are to go to Slurm can't be submitted, in a sentence; None where they can, or go elsewhere."""
    return why_not_reached() if workflow.executor_plugin and workflow.executor_plugin.name == "slurm" else None


def plugin_chooses_partitions(workflow: Any) -> bool:
    """Whether the Slurm plugin was given a file of partitions, of which it chooses one for each job."""
    given = getattr(workflow.executor_settings, "partition_config", None)
    return bool(given or os.environ.get("SNAKEMAKE_SLURM_PARTITIONS"))


class Advice:
    """What the cluster is asked for, worked out once for each size of job, and said once in the log."""

    def __init__(self, prefer_features: tuple[str, ...]) -> None:
        self._also = prefer_features
        self._preferred: dict[tuple[JobSize, str | None], str] = {}
        self._said: set[str] = set()

    @cached_property
    def cluster(self) -> Cluster | None:
        return ask_cluster()

    @property
    def default_partition(self) -> str | None:
        return self.cluster.default_partition if self.cluster is not None else None

    def prefer(self, size: JobSize, partition: str | None) -> str:
        """The ``--prefer`` option for such a job, or an empty text.

        Args:
            partition: where it goes; None where that is not known.
        """
        key = (size, partition)
        if key not in self._preferred:
            self._preferred[key] = prefer_option(self.cluster, size, partition=partition, also=self._also)
            if self.cluster is not None:
                self._tell(self.cluster, size, partition, self._preferred[key])
        return self._preferred[key]

    def _tell(self, cluster: Cluster, size: JobSize, partition: str | None, option: str) -> None:
        groups = cluster.groups_for(size, partition)
        if not groups:
            others = ", ".join(dict.fromkeys(group.partition for group in cluster.groups_for(size)))
            where = f"partition {partition}" if partition and others else "the cluster"
            hint = f"these have: {others}; set one as slurm_partition in the profile" if others else "Slurm will decide"
            self._say("nowhere", f"sinfo shows no node of {where} that can hold a job of {describe(size)}; {hint}")
        elif option:
            self._say("prefer", f"GPU jobs ask for Ampere or newer where available: {option}")
        elif cluster.version < FIRST_VERSION:
            year, month = cluster.version
            self._say("old", f"Slurm {year}.{month:02d} has no --prefer (22.05 brought it): GPU jobs go to any GPU")
        else:
            kinds = sorted({kind for group in groups for kind in group.gpus if kind})
            types = f" (types: {', '.join(kinds)}; to insist on one, see gres in the profile)" if kinds else ""
            self._say("unnamed", f"no node feature names an Ampere or newer GPU: GPU jobs go to any GPU{types}")

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            logging.getLogger("snakemake.logging").warning(text)  # Snakemake's own log, among its messages


class _Job:
    """A job's other resources, as the rule, the profile and the command line leave them."""

    def __init__(self, workflow: Any, wildcards: Any, input: Any, attempt: int, threads: int, rulename: str) -> None:
        self._resources = workflow.get_rule(rulename).resources
        self._wildcards = wildcards
        self._threads = threads
        self._known = {
            "input": input,
            "attempt": attempt,
            "threads": threads,
            "rulename": rulename,
            "async_run": workflow.async_run,
        }

    def evaluate(self, resource: Any) -> Any:
        return resource.evaluate(self._wildcards, **self._known).value if hasattr(resource, "evaluate") else resource

    def value(self, name: str) -> Any:
        return self.evaluate(self._resources[name]) if name in self._resources else None

    def size(self) -> JobSize:
        gres = parse_gres(str(self.value("gres") or ""))
        gpus = sum(gres.values()) or self.value("gpu")
        memory = self.value("mem_mb")
        return JobSize(
            gpus=gpus if isinstance(gpus, int) else 1,
            gpu_type=next((kind for kind in gres if kind), None) or self.value("gpu_model"),
            memory_mb=memory if isinstance(memory, int) else 0,
            cpus=self._threads,
        )


def describe(size: JobSize) -> str:
    """The size in words."""
    kind = f" {size.gpu_type}" if size.gpu_type else ""
    return f"{size.gpus}{kind} GPU, {size.memory_mb} MB and {size.cpus} processors"


MEGABYTE = 1_000_000

PROCESS_MB = 4_000
"""Python, torch and its CUDA libraries in host memory, for each process (measured: 2 to 3 GB)."""

BYTES_PER_TOKEN = 100
"""A token on its way in: text, tokens and weights as int64 and float32, and copies of them."""

BATCHES_HELD = 6
"""Batches of which residues' vectors are in memory: on their way from the device, and being written."""

BATCH_TOKENS = {"gpu": 32_768, "cpu": 4_096}
"""Of a batch, at 1280 channels or more; smaller models have larger batches, and as many bytes."""

GPU_OPERATIONS_PER_SECOND = 40e12
"""What a GPU of the Ampere generation keeps up in 16-bit (A10, A30); older ones may need the second attempt."""

CPU_OPERATIONS_PER_SECOND = 20e9
"""What one core keeps up in float32."""

START_MINUTES = 15


def embed_memory_mb(
    architecture: AnySizes,
    chunk: ChunkManifest,
    *,
    layers: int = 1,
    vectors: int = 1,
    per_residue: bool = False,
    gpus: int = 1,
    attempt: int = 1,
    letters: Letters = RESIDUES,
) -> int:
    """Host memory in MB (10^6 bytes).

    Args:
        layers: how many layers are kept.
        vectors, per_residue: what is kept of each: so many vectors a protein, and whether one a residue.
        gpus: processes with a GPU each; 0 for a job on the CPU, which holds the weights in float32.
        attempt: 1 for the first.
        letters: what the chunk's sequences are made of.
    """
    processes = max(1, gpus)
    # Vectors are held by the devices' processes, joined, and being written.
    held = 3 * 4 * chunk.proteins * vectors * layers * architecture.embed_dim
    if per_residue:
        tokens = BATCH_TOKENS["gpu" if gpus else "cpu"]
        # Pinned memory comes in powers of two.
        batch = 1 << (4 * tokens * max(1280, architecture.embed_dim) - 1).bit_length()
        held += processes * layers * min(BATCHES_HELD * batch, 4 * chunk.residues * architecture.embed_dim)
    held += BYTES_PER_TOKEN * chunk.residues // letters.a_token
    if gpus == 0:
        held += 5 * architecture.parameters  # 4 bytes each, and activations
    return _round_up(attempt * (processes * PROCESS_MB + held / MEGABYTE), 1_000)


def embed_minutes(
    architecture: AnySizes,
    chunk: ChunkManifest,
    *,
    gpus: int = 1,
    threads: int = 1,
    attempt: int = 1,
    letters: Letters = RESIDUES,
) -> int:
    """Time limit in minutes: start, then two operations a parameter and token of the chunk's cost on a slow device."""
    rate = gpus * GPU_OPERATIONS_PER_SECOND if gpus else threads * CPU_OPERATIONS_PER_SECOND
    seconds = 2 * architecture.parameters * chunk.cost / letters.a_token / rate
    return _round_up(2 ** (attempt - 1) * (START_MINUTES + seconds / 60), 5)


def _round_up(value: float, step: int) -> int:
    return math.ceil(value / step) * step
