"""One worker and several workers give the same samples and rows, and decode every image once."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mode_ray.config.evaluate import EvaluatePlacement
from mode_ray.errors import DataError
from mode_ray.evaluate.measure.known_images import KnownImages
from mode_ray.evaluate.measure.options import MeasureOptions
from mode_ray.evaluate.measure.split_features import encode_part, encode_split, merge_parts
from mode_ray.evaluate.tasks.task import Task
from mode_ray.models.encode import Expert
from mode_ray.storage import Location

PIXELS, WORKERS, ROWS, BROKEN = 24 * 24, 3, 14, 6


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Images with two captions each, one of the images broken."""
    images = [b"broken" if row == BROKEN else png(row) for row in range(ROWS)]
    captions = [[f"one {row}", f"two {row}"] for row in range(ROWS)]
    pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / "t.parquet")
    return Task(name="t", kind="retrieval", paths=(str(tmp_path / "t.parquet"),))


@pytest.fixture
def experts(models: dict[str, Location]) -> dict[str, Expert]:
    return {name: Expert(folder, "cpu") for name, folder in models.items()}


def test_several_workers_give_what_one_gives(task: Task, experts: dict[str, Expert], tmp_path: Path) -> None:
    options = MeasureOptions(EvaluatePlacement(batch_size=2, workers_per_task=WORKERS, max_image_pixels=PIXELS))
    alone, expected = encode_split(task, "test", KnownImages(experts), options)
    folders = [Location.parse(str(tmp_path / str(worker))) for worker in range(WORKERS)]
    parts = [
        encode_part(task, "test", KnownImages(experts), options, worker, folder)
        for worker, folder in enumerate(folders)
    ]
    assert [part.usable.images for part in parts] == [5, 4, 4]  # seven batches of two, an image broken in the first's
    usable, features = merge_parts(list(experts), parts)
    assert usable.captions == alone.captions
    np.testing.assert_array_equal(usable.labels(), alone.labels())
    assert usable.skipped == alone.skipped == {"undecodable image": 1}
    assert usable.examples == alone.examples
    for name in experts:
        np.testing.assert_allclose(features[name], expected[name], atol=1e-6)


def test_all_workers_together_decode_every_image_once(
    task: Task, experts: dict[str, Expert], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counting(source: Any, *arguments: Any, **options: Any) -> Image.Image:  # noqa: ANN401
        opened.append(source.getvalue())
        return open_image(source, *arguments, **options)

    opened: list[bytes] = []
    open_image = Image.open
    monkeypatch.setattr(Image, "open", counting)
    options = MeasureOptions(EvaluatePlacement(batch_size=2, workers_per_task=WORKERS, max_image_pixels=PIXELS))
    for worker in range(WORKERS):
        encode_part(task, "test", KnownImages(experts), options, worker, Location.parse(str(tmp_path / str(worker))))
    assert sorted(opened) == sorted(b"broken" if row == BROKEN else png(row) for row in range(ROWS))


def test_workers_without_an_image_do_no_harm_and_none_at_all_is_told(
    task: Task, experts: dict[str, Expert], tmp_path: Path
) -> None:
    options = MeasureOptions(EvaluatePlacement(batch_size=ROWS, workers_per_task=2, max_image_pixels=PIXELS))
    folders = [Location.parse(str(tmp_path / str(worker))) for worker in range(2)]
    first, second = (
        encode_part(task, "test", KnownImages(experts), options, worker, folder)
        for worker, folder in enumerate(folders)
    )
    assert (first.usable.images, second.usable.images) == (ROWS - 1, 0)
    assert merge_parts(list(experts), [first, second])[0].images == ROWS - 1
    with pytest.raises(DataError, match="task t: no usable sample"):
        merge_parts(list(experts), [second])
