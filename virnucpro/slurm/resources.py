"""The Snakemake resource of GPU jobs that only Slurm needs: ``slurm_extra``, with ``--prefer`` in it.

It is worked out when Snakemake is about to submit (or shows a dry run), never inside a job. What the user set, in a
profile or on the command line, always wins. The partition is the user's to set, or the Slurm plugin's to choose.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from virnucpro.slurm.cluster import Cluster, JobSize, ask_cluster, parse_gres, why_not_reached
from virnucpro.slurm.features import FIRST_VERSION, prefer_option

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
