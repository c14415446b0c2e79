"""The features of a unit: those of the trunk, computed once per image, and the same after a kill."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from mode_ray.captions.listing import list_work_units
from mode_ray.config.load import load_config, with_values
from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.features.stage import features_fields
from mode_ray.features.worker import UNDECODABLE, FeatureWorker
from mode_ray.models.clip import build_clip
from mode_ray.models.locking import lock_towers
from mode_ray.models.preprocess import ImageGeometry, ImageInput
from mode_ray.models.trunks import divide
from mode_ray.pairs.feature_table import IMAGE, PROBLEM, TEXT, FeatureNote, feature_column
from mode_ray.stages.actor import UnitActor
from mode_ray.stages.manifest import Stage
from mode_ray.stages.resume import plan_units
from mode_ray.stages.run import Run
from mode_ray.storage import Location

UNITS = 12
ROWS = 6
BAD_ROW = 4


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (120, 100, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def config_file(tmp_path: Path, architecture: Path) -> Path:
    """A config over shards whose rows have two captions each; one image of the first shard is damaged."""
    (tmp_path / "data").mkdir()
    for unit in range(UNITS):
        images = [picture(ROWS * unit + row) for row in range(ROWS)]
        if unit == 0:
            images[BAD_ROW] = b"no image"
        captions = [[f"picture {row} of {unit}", "a picture"] for row in range(ROWS)]
        pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / f"data/{unit:02d}.parquet")
    lock = {"image": {"groups": 1}, "text": {"groups": 1}}
    values = {
        "run": str(tmp_path / "run"),
        "captions": {"paths": [str(tmp_path / "data")], "select": "all"},
        "cluster": {"coarse": {"experts": [2]}},
        "features": {"views": 3},
        "train": {
            "model": {"architecture": str(architecture), "lock": lock},
            "data": {"mode": "features"},
            "experts": 2,
            "dense_samples": 64,
        },
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture
def config(config_file: Path) -> RunConfig:
    return load_config(str(config_file))


def computed(config: RunConfig, unit: int = 0) -> Any:  # noqa: ANN401
    """The table and the record of a unit."""
    worker, work_unit = FeatureWorker(config), list_work_units(config.captions)[unit]
    return worker.compute(work_unit, worker.read(work_unit))


class TestAUnit:
    def test_every_caption_has_the_views_of_its_image(self, config: RunConfig) -> None:
        table, record = computed(config, 1)
        images, texts = feature_column(table, IMAGE), feature_column(table, TEXT)
        assert (images.shape, texts.shape) == ((2 * ROWS, 3 * 16), (2 * ROWS, 16))
        assert np.array_equal(images[0::2], images[1::2])
        # Two views of an image can be the same crop: the whole image, where ten attempts did not fit. Which ones are
        # depends on the path of the data.
        assert 2 * ROWS < len({row.tobytes() for row in images.reshape(-1, 16)}) <= 3 * ROWS
        assert len({row.tobytes() for row in texts}) == ROWS + 1
        assert (record.rows_in, record.rows_out, record.refused) == (12, 12, {})

    def test_an_image_that_cannot_be_decoded_is_counted_and_named(self, config: RunConfig) -> None:
        table, record = computed(config)
        bad = [number for number, problem in enumerate(table[PROBLEM].to_pylist()) if problem is not None]
        assert bad == [2 * BAD_ROW, 2 * BAD_ROW + 1]
        assert not feature_column(table, IMAGE)[bad].any()
        assert (record.rows_out, record.refused) == (10, {UNDECODABLE: 2})
        assert f"row {BAD_ROW}" in record.examples[UNDECODABLE]

    def test_features_without_augmentation_are_those_of_the_model_in_evaluation(self, config: RunConfig) -> None:
        config = with_values(config, {"features.augmented": False})
        worker, work_unit = FeatureWorker(config), list_work_units(config.captions)[1]
        table, _ = worker.compute(work_unit, worker.read(work_unit))
        clip = build_clip(config.train.model, config.train.seed)
        lock_towers(clip.module, config.train.model.lock)
        module: Any = clip.module.eval()
        inputs = ImageInput(ImageGeometry.of_model(clip.config), 10**6)
        pixels = [inputs.prepare(picture(ROWS + row), "") for row in range(ROWS)]
        texts = [f"picture {row} of 1" for row in range(ROWS)]
        parts = divide(module)
        with torch.no_grad():
            images = torch.stack([clip.eval_transform(Image.fromarray(one)) for one in pixels])
            expected = (module.encode_image(images), module.encode_text(clip.tokenizer(texts)))
            uint8 = np.stack(pixels).transpose(0, 3, 1, 2)
            exact = (worker.image_features(uint8), worker.text_features(texts))
            stored = (feature_column(table, IMAGE)[::2], feature_column(table, TEXT)[::2])
            for whole, float32, half, head in zip(
                expected, exact, stored, (parts.image.head, parts.text.head), strict=True
            ):
                torch.testing.assert_close(head(torch.from_numpy(float32)), whole, atol=1e-5, rtol=0.0)
                assert np.array_equal(half, float32.astype(np.float16))
                # The cost of storing float16.
                rounded = torch.nn.functional.normalize(head(torch.from_numpy(half.astype(np.float32))))
                assert (rounded - torch.nn.functional.normalize(whole)).abs().max() < 1e-3

    def test_the_file_names_its_trunk(self, config: RunConfig) -> None:
        one, other = (FeatureNote.of(computed(config, unit)[0].schema) for unit in (0, 1))
        assert one == other
        assert (len(one.trunk), one.views) == (64, 3)
        assert FeatureNote.of(computed(with_values(config, {"train.seed": 1}))[0].schema).trunk != one.trunk

    def test_views_do_not_depend_on_the_training_seed(self, config: RunConfig) -> None:
        first, second, third = (
            feature_column(computed(with_values(config, {"features.seed": seed}), 1)[0], IMAGE) for seed in (0, 0, 1)
        )
        assert np.array_equal(first, second)
        assert not np.array_equal(first, third)


def test_a_tower_without_a_trunk_is_refused(config: RunConfig) -> None:
    with pytest.raises(UsageError, match=r"lock\.image: features can be shared only of a tower whose projection"):
        FeatureWorker(with_values(config, {"train.model.lock.image": {"groups": 2}}))


@pytest.mark.drill
def test_a_worker_that_was_killed_leaves_what_another_completes_byte_for_byte(
    config_file: Path, config: RunConfig, tmp_path: Path
) -> None:
    directories = [Location.parse(str(tmp_path / name)) for name in ("whole", "killed")]
    work_units = list_work_units(config.captions)
    whole, killed = (Stage("features", directory, {}) for directory in directories)
    manifests = [
        whole.finish(list(UnitActor(FeatureWorker(config), whole.directory, "only", 0).process(work_units)), {})
    ]
    script = Path(__file__).with_name("killed_worker.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(config_file), killed.directory.path], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    plan = plan_units(killed, work_units)
    assert 1 <= len(plan.finished) < UNITS
    records = list(UnitActor(FeatureWorker(config), killed.directory, "second", 0).process(plan.left))
    manifests.append(killed.finish([*plan.finished.values(), *records], {}))
    assert manifests[0].content_hash == manifests[1].content_hash
    assert [manifest.attempts for manifest in manifests] == [1, 2]
    for work_unit in work_units:
        tables = [stage.output(work_unit.unit).read_table().replace_schema_metadata(None) for stage in (whole, killed)]
        assert tables[0].equals(tables[1])


class TestTheFingerprint:
    def fields(self, config: RunConfig, **changes: object) -> dict[str, object]:
        changed = with_values(config, {name.replace("__", "."): value for name, value in changes.items()})
        return features_fields(Run(changed, list_work_units(changed.captions)))

    def test_it_has_what_decides_the_features(self, config: RunConfig) -> None:
        before = self.fields(config)
        for changes in (
            {"features__views": 4},
            {"features__seed": 1},
            {"features__augmented": False},
            {"train__model__lock__image": "all"},
            {"images__decoding": "open_clip"},
            {"captions__select": "first"},
        ):
            assert self.fields(config, **changes) != before

    def test_it_has_no_clustering_and_a_training_seed_only_if_weights_are_drawn(self, config: RunConfig) -> None:
        before = self.fields(config)
        assert (
            self.fields(config, cluster__fine__centers=64, train__batch_size=32, features__pool__max_actors=7)
            == before
        )
        assert self.fields(config, train__seed=1) != before
        given = {"train__model__pretrained": str(config.directory / "weights.pt")}
        assert self.fields(config, **given, train__seed=1) == self.fields(config, **given)
