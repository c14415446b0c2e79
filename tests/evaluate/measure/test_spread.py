"""Evaluation tasks on Ray: several workers give the result of one, and errors keep their message."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError
from mode_ray.evaluate.measure.measurements import TaskSummary, load_cosines
from mode_ray.evaluate.measure.spread import measure_tasks
from mode_ray.evaluate.tasks.task import Task
from mode_ray.storage import Location

CLASSES = ("red", "green", "blue")


def picture(number: int) -> bytes:
    """An image in the colour of class `number % 3`, with its own shade."""
    buffer = io.BytesIO()
    pixel = tuple(100 + 5 * number if channel == number % 3 else 20 for channel in range(3))
    Image.new("RGB", (20, 20), pixel).save(buffer, "PNG")
    return buffer.getvalue()


def write(file: Path, labels: list[str]) -> str:
    images = [picture(number) for number in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": labels}), file)
    return str(file)


def config(root: Path, workers: int, **sections: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": str(root),
            "captions": {"paths": ["x"]},
            "encoder": {"kind": "static", "model": "package:wordllama"},
            "cluster": {"coarse": {"experts": [2]}},
            "train": {"experts": 2, "dense_samples": 64},
            "evaluate": {"placement": {"batch_size": 2, "workers_per_task": workers}},
            **sections,
        }
    )


@pytest.mark.usefixtures("ray_session")
class TestMeasureTasks:
    @pytest.mark.drill
    def test_one_that_several_workers_share_is_measured_as_by_one(
        self, tmp_path: Path, models: dict[str, Location]
    ) -> None:
        labels = [CLASSES[number % 3] for number in range(21)]
        paths = {split: (write(tmp_path / f"{split}.parquet", labels),) for split in ("test", "train")}
        task = Task(
            name="colours",
            kind="classification",
            classes=CLASSES,
            paths=paths["test"],
            train_paths=paths["train"],
            linear_probe=True,
        )
        found = []
        for workers in (1, 2):
            directory = Location.parse(str(tmp_path / str(workers)))
            summaries: list[TaskSummary] = []
            measure_tasks(config(tmp_path, workers), {directory: task}, models, summaries.append)
            assert [summary.images for summary in summaries] == [21]
            assert sorted(file.name for file in directory.directories()) == ["cosines"]
            found.append(load_cosines(directory))
        one, two = found
        np.testing.assert_array_equal(one.labels, two.labels)
        assert one.summary.linear_probe.keys() == two.summary.linear_probe.keys()
        for name in models:
            np.testing.assert_allclose(one.cosines[name], two.cosines[name], atol=1e-5)

    def test_tasks_over_the_same_files_are_measured_as_apart(
        self, tmp_path: Path, models: dict[str, Location]
    ) -> None:
        paths = [write(tmp_path / f"{name}.parquet", ["red", "green", "blue", "red"]) for name in ("one", "other")]
        tasks = [
            Task(name="all", kind="classification", classes=CLASSES, paths=(paths[0],)),
            Task(name="other", kind="classification", classes=CLASSES, paths=(paths[1],)),
            Task(name="reds", kind="classification", classes=CLASSES[:2], paths=(paths[0],)),
        ]

        def measured(*tasks: Task) -> dict[str, TaskSummary]:
            summaries: list[TaskSummary] = []
            places = {Location.parse(str(tmp_path / f"{len(tasks)}" / task.name)): task for task in tasks}
            measure_tasks(config(tmp_path, 1), places, models, summaries.append)
            return {summary.task: summary for summary in summaries}

        together = measured(*tasks)
        assert list(together) in (["all", "reds", "other"], ["other", "all", "reds"])  # two Ray tasks
        for task in tasks:
            assert measured(task)[task.name] == together[task.name]
            apart = load_cosines(Location.parse(str(tmp_path / "1" / task.name)))
            found = load_cosines(Location.parse(str(tmp_path / "3" / task.name)))
            for name in models:
                np.testing.assert_allclose(found.cosines[name], apart.cosines[name], atol=1e-6)

    @pytest.mark.parametrize(
        ("own", "run_limit", "images"), [(399, 64_000_000, 2), (400, 64_000_000, 3), (None, 399, 2), (400, 399, 3)]
    )
    def test_larger_images_are_refused_and_counted(
        self, tmp_path: Path, models: dict[str, Location], own: int | None, run_limit: int, images: int
    ) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (10, 10), "red").save(buffer, "PNG")
        pixels_400, pixels_100 = picture(0), buffer.getvalue()
        table = pa.table({"image": [pixels_100, pixels_400, pixels_100], "label": ["red", "red", "red"]})
        pq.write_table(table, tmp_path / "t.parquet")
        task = Task(name="t", kind="classification", classes=CLASSES, paths=(str(tmp_path / "t.parquet"),))
        placement = {"batch_size": 2, "max_image_pixels": own}
        limited = config(tmp_path, 1, evaluate={"placement": placement}, limits={"max_image_pixels": run_limit})
        summaries: list[TaskSummary] = []
        measure_tasks(limited, {Location.parse(str(tmp_path / "out")): task}, models, summaries.append)
        assert [(summary.images, sum(summary.skipped.values())) for summary in summaries] == [(images, 3 - images)]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_mistake_is_told_as_itself(self, tmp_path: Path, models: dict[str, Location], workers: int) -> None:
        path = write(tmp_path / "t.parquet", ["0", "1", "7", "1"])
        task = Task(name="t", kind="classification", classes=CLASSES, paths=(path,), labels="index")
        directory = Location.parse(str(tmp_path / "measured"))
        with pytest.raises(DataError, match=r"t\.parquet: row 2: label: label '7' is outside 0 to 2"):
            measure_tasks(config(tmp_path, workers), {directory: task}, models, lambda _: None)
