"""What all tests share: few threads, so that the suite is a good neighbour, and Triton's interpreter without a GPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from virnucpro.base.limits import let_waiting_threads_sleep

let_waiting_threads_sleep()  # as in a job: cores are shared with other tests

import torch  # noqa: E402

from virnucpro.models.precision import settle_vector_functions  # noqa: E402

if TYPE_CHECKING:
    from tests.workflow.faults import Run

torch.set_num_threads(2)
settle_vector_functions()  # fair-esm, which we compare with, calls them too

if importlib.util.find_spec("hypothesis"):  # the tests on a GPU do without it
    from hypothesis import settings

    # CI draws the same examples each time, so that a failure is the change's; elsewhere new ones are drawn each time.
    settings.register_profile("ci", derandomize=True, database=None, deadline=None)
    settings.register_profile("local", deadline=None)  # a busy machine is no defect
    settings.load_profile("ci" if os.environ.get("CI") else "local")

# Tests count jobs in Snakemake's own lines; those of the display take this away.
os.environ["VIRNUCPRO_DISPLAY"] = "snakemake"

# Hundreds of processes import the package: it is compiled once, also where the caller's Python keeps nothing.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Nothing is fetched from the hub, and what a user has in its cache is not looked at.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "/nonexistent/hub"}

# Read when Triton is first imported: its kernels then run on CPU tensors.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def run_alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which nothing goes wrong, for the tests in which something does; one for all workers."""
    return _one_for_all(tmp_path_factory, "alone", reuses=False)


@pytest.fixture(scope="session")
def run_that_reuses(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, and some of its proteins are in earlier results."""
    return _one_for_all(tmp_path_factory, "reuses", reuses=True)


@pytest.fixture(scope="session")
def undisturbed(run_alone: Run) -> Run:
    return run_alone


def _one_for_all(tmp_path_factory: pytest.TempPathFactory, name: str, *, reuses: bool) -> Run:
    from filelock import FileLock  # as what follows: on a GPU machine these may be missing

    from tests.workflow.faults import Run, undisturbed_run

    run_of_tests = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run_of_tests is None:
        return undisturbed_run(tmp_path_factory.mktemp(name), reuses=reuses)
    folder = tmp_path_factory.getbasetemp().parent / f"{name}-{run_of_tests}"
    with FileLock(folder.with_suffix(".lock")):
        done = folder / "done"
        if not done.exists():
            folder.mkdir()
            undisturbed_run(folder, reuses=reuses)
            done.touch()
        return Run.of_proteins(folder)


LONGEST = ("tests/workflow/test_faults.py", "tests/slurm", "tests/workflow", "tests/install")
"""What is started first where workers share the files, so that none works at the end while the others have nothing."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take longest come first."""

    def place(item: pytest.Item) -> int:
        return next((i for i, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the jobs of one core have, so that sums are taken in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
