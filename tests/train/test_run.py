"""The stage as a whole, on Ray, its runs in the launchers' processes: one expert fails, is repaired and retried."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mode_ray.config.run import RunConfig
from mode_ray.errors import TrainingError, UsageError
from mode_ray.evaluate.measure.models import find_trained
from mode_ray.run_directory import LEASE_FILE
from mode_ray.stages.manifest import Manifest, Stage
from mode_ray.stages.run import Quiet, Run, TrialStatuses
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.train.runs.status import TrialStatus, read_status
from mode_ray.train.runs.trial import read_metrics
from mode_ray.train.stage import retry_trial, run_train

# Colours of expert 1, see conftest.
EXPERT_1 = ("blue", "yellow")
RUNS = ("seed", "dense", "n2/00", "n2/01")


def spoil_images_of_expert_1(data_folder: Path) -> None:
    """Make its images undecodable, at their places and sizes."""
    before, *pictures = (data_folder / "a.tar").read_bytes().split(b"\x89PNG")
    # Every fourth picture of conftest has the same colour.
    marks = [b"\0\0\0\0" if number % 4 in (2, 3) else b"\x89PNG" for number in range(len(pictures))]
    spoiled = b"".join(mark + picture for mark, picture in zip(marks, pictures, strict=True))
    (data_folder / "a.tar").write_bytes(before + spoiled)
    table = pq.read_table(data_folder / "b.parquet")
    images = [
        image.replace(b"\x89PNG", b"\0\0\0\0") if caption.split()[1] in EXPERT_1 else image
        for image, caption in zip(table["image"].to_pylist(), table["caption"].to_pylist(), strict=True)
    ]
    pq.write_table(table.set_column(0, "image", [images]), data_folder / "b.parquet", row_group_size=12)


class Recorded(Quiet):
    """Keeps the lines and the statuses."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.seen: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def watching_trials(self) -> AbstractContextManager[Callable[[TrialStatuses], None]]:
        return nullcontext(lambda statuses: self.seen.append(dict(statuses)))


@pytest.mark.drill
def test_an_expert_that_fails_is_retried_alone_and_completes_the_stage(
    ray_session: None,
    make_config: Callable[..., RunConfig],
    run_folder: Location,
    work_units: list[WorkUnit],
    data_folder: Path,
) -> None:
    # Half of the images are too many for the expert that has no others, not for seed and dense run.
    config = make_config(limits={"max_bad_image_share": 0.75}, placement={"concurrent_runs": 2})
    stage = Stage("train", run_folder / "experts", {})
    run, report = Run(config, work_units), Recorded()
    healthy = {file: file.read_bytes() for file in sorted(data_folder.iterdir())}
    spoil_images_of_expert_1(data_folder)

    with pytest.raises(TrainingError, match=r"1 of 4 runs failed \(the others are finished\):\n  n2/01: .*decoded"):
        run_train(run, stage, report)
    assert report.said[0].startswith(
        "[train] budget in samples: seed 32; experts n2/01 16, n2/00 16; total 64 = 1.000 x"
    )
    first = stored(stage)
    assert {name: status.state for name, status in first.items()} == {
        **dict.fromkeys(RUNS, "finished"),
        "n2/01": "failed",
    }
    assert not (stage.directory / LEASE_FILE).exists()
    assert stage.manifest() is None
    with pytest.raises(UsageError, match=r"n2/01: failed .*or evaluate without the failed experts: .*=\[1\]"):
        find_trained(2, (), stage.directory)
    assert [trial.name for trial in find_trained(2, (1,), stage.directory).trials] == ["seed", "dense", "n2/00"]

    for wrong, reason in (("7", "no such run; there are seed, dense, n2/01, n2/00"), ("dense", "is finished")):
        with pytest.raises(UsageError, match=reason):
            retry_trial(run, stage, wrong, report)
    for file, content in healthy.items():
        file.write_bytes(content)
    report.seen.clear()
    manifest = retry_trial(run, stage, "1", report)
    assert isinstance(manifest, Manifest)
    assert manifest.summary["budget"]["total_to_dense"] == 1.0
    assert set[Any]().union(*report.seen) == {"seed", "n2/01"}
    again = stored(stage)
    assert (again["n2/01"].state, again["n2/01"].launches, again["n2/01"].reason) == ("finished", 2, None)
    assert {name: again[name] for name in RUNS[:3]} == {name: first[name] for name in RUNS[:3]}
    assert read_metrics(stage.directory / "n2/01")["bad_images"] == 0


def test_a_retry_of_one_leaves_the_others_as_they_are(
    ray_session: None, make_config: Callable[..., RunConfig], run_folder: Location, work_units: list[WorkUnit]
) -> None:
    config = make_config()
    stage = Stage("train", run_folder / "experts", {})
    lost = TrialStatus(trial="dense", state="failed", samples=64, launches=3, reason="launcher lost")
    (stage.directory / "dense/status.json").write_text(json.dumps(vars(lost)))
    run = Run(config, work_units)
    with pytest.raises(UsageError, match="n2/00 continues seed, which is not finished: retry that one first"):
        retry_trial(run, stage, "0", Quiet())
    assert retry_trial(run, stage, "seed", Quiet()) is None
    assert stored(stage)["seed"].state == "finished"
    assert stored(stage) == {"seed": stored(stage)["seed"], "dense": lost}


def stored(stage: Stage) -> Mapping[str, TrialStatus]:
    """What the status files say, of trials that have one."""
    statuses = {name: read_status(stage.directory / name) for name in RUNS}
    return {name: status for name, status in statuses.items() if status is not None}
