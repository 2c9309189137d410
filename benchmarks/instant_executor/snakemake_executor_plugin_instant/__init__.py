"""A Snakemake executor whose jobs are done at once: what is left is Snakemake's own work of planning and scheduling.

It makes the outputs as empty files. For bench_scale.py; Snakemake finds it when its folder is on PYTHONPATH.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=False,
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
)


class Executor(RemoteExecutor):
    def __post_init__(self) -> None:
        self._number = 0
        self._number_lock = threading.Lock()

    def run_job(self, job: Any) -> None:
        with self._number_lock:
            self._number += 1
        for path in [*job.output, *job.log, *([job.benchmark] if job.benchmark else [])]:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
        self.format_job_exec(job)  # the command line of each job is made, as for a real cluster
        self.report_job_submission(SubmittedJobInfo(job, external_jobid=str(self._number)))

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        for job in active_jobs:
            self.report_job_success(job)
        nothing_runs: list[SubmittedJobInfo] = []
        for job in nothing_runs:
            yield job

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        return
