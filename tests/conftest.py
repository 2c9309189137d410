"""What all tests share: few threads, so that the suite is a good neighbour."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.workflow.faults import Run

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which nothing goes wrong, for the tests in which something does."""
    from tests.workflow.faults import undisturbed_run  # needs more packages than a GPU machine may have

    return undisturbed_run(tmp_path_factory.mktemp("undisturbed"))
