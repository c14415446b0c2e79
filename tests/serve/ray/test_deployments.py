"""What the arguments of an expert application stand for."""

from pathlib import Path

import pytest

from mode_ray.errors import UsageError
from mode_ray.serve.ray.deployments import ExpertArguments, expert_folder


def test_the_model_is_the_runs_or_lies_elsewhere(served_folder: Path, tmp_path: Path) -> None:
    of_the_run = expert_folder(ExpertArguments(run=str(served_folder), expert=2))
    assert of_the_run.path.endswith("02")
    assert expert_folder(ExpertArguments(run=str(served_folder), expert=2, folder=str(tmp_path))).path == str(tmp_path)


@pytest.mark.parametrize("folder", [None, "/models/seven"])
def test_a_number_that_no_router_of_the_run_would_ask_is_refused(served_folder: Path, folder: str | None) -> None:
    with pytest.raises(UsageError, match="there is no expert 7: the run has 3, from 0 to 2"):
        expert_folder(ExpertArguments(run=str(served_folder), expert=7, folder=folder))
