"""The features of a run in mapped files: every image and caption once, found by work unit, row and caption index."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from feature_examples import Row, image_of, text_of, write_features

from mode_ray.errors import DataError, UsageError
from mode_ray.pairs.feature_rows import FeatureRows, require_same_input
from mode_ray.pairs.index import PairIndex
from mode_ray.pairs.reader import caption_id
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

# Two captions of one image, an image that cannot be decoded, and a caption that is in both units.
UNITS: list[list[Row]] = [
    [(0, 0, "a cat", None), (0, 1, "an animal", None), (3, 0, "a dog", "u0.tar: row 3: damaged")],
    [(1, 0, "a horse at sea", None), (2, 0, "a cat", None)],
]


@pytest.fixture
def features(tmp_path: Path) -> Location:
    directory = Location.parse(str(tmp_path / "run/features"))
    write_features(directory, UNITS)
    return directory


def index_of(*places: tuple[int, int, int]) -> PairIndex:
    """An index over u1 and u0, in this order: number of the unit, row, caption index."""
    units = [WorkUnit(unit=name, uri=f"/data/{name}.tar", format="webdataset") for name in ("u1", "u0")]
    shard, row, caption_index = zip(*places, strict=True)
    columns = [pa.array(shard, pa.int32()), pa.array(row, pa.int64()), pa.array(caption_index, pa.int32())]
    return PairIndex.of(units, pa.table(columns, names=["shard", "row", "caption_index"]))


def test_every_image_and_caption_is_stored_once(features: Location) -> None:
    rows = FeatureRows.open(features)
    assert (len(rows.image_p), rows.images_ivk.shape, rows.texts_lk.shape) == (5, (4, 2, 3), (4, 4))
    assert rows.image_p.tolist() == [0, 0, -1, 2, 3]
    assert rows.text_p[0] == rows.text_p[4]
    assert rows.problems == {2: "u0.tar: row 3: damaged"}


def test_the_pairs_of_a_training_set_are_found_in_its_order(features: Location) -> None:
    rows = FeatureRows.open(features)
    places = [(0, 2, 0), (1, 0, 1), (0, 1, 0), (1, 0, 0)]
    pairs = rows.pairs_of(index_of(*places))
    assert pairs.tolist() == [4, 1, 3, 0]
    for pair, unit, row, caption in zip(
        pairs, (1, 0, 1, 0), (2, 0, 1, 0), ("a cat", "an animal", "a horse at sea", "a cat"), strict=True
    ):
        assert np.array_equal(rows.images_ivk[rows.image_p[pair]], image_of(unit, row))
        assert np.array_equal(rows.texts_lk[rows.text_p[pair]], text_of(caption))
        assert rows.caption_id_p[pair] == caption_id(caption)


@pytest.mark.parametrize("place", [(0, 7, 0), (1, 0, 2), (1, 9, 0)])
def test_a_pair_without_features_is_named(features: Location, place: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match=rf"u{1 - place[0]}\.tar: row {place[1]} has no features"):
        FeatureRows.open(features).pairs_of(index_of(place))


def test_the_files_are_written_once(features: Location) -> None:
    FeatureRows.open(features)
    (folder,) = Path(features.path).glob("rows-*[!k]")
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    FeatureRows.open(features)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_features_on_an_object_store_are_copied_to_the_node(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = Location.parse(f"{bucket}/run/features")
    write_features(directory, UNITS)
    rows = FeatureRows.open(directory)
    assert np.array_equal(rows.images_ivk[rows.image_p[4]], image_of(1, 2))
    assert len(list(tmp_path.glob("*/features-*/images.npy"))) == 1
    assert {file.name for file in directory.files()} == {
        "started.json",
        "units.parquet",
        "manifest.json",
        "u0.parquet",
        "u1.parquet",
    }


def test_what_a_killed_process_left_is_written_again(features: Location) -> None:
    FeatureRows.open(features)
    (folder,) = Path(features.path).glob("rows-*[!k]")
    unfinished = folder.rename(folder.with_suffix(".unfinished"))
    (unfinished / "images.npy").write_bytes(b"cut off")
    assert FeatureRows.open(features).images_ivk.shape == (4, 2, 3)


class TestRefused:
    def test_a_stage_that_is_not_done(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="features stage is not done: run `mode-ray features` first"):
            FeatureRows.open(Location.parse(str(tmp_path)))

    def test_outputs_of_different_weights(self, tmp_path: Path) -> None:
        directory = Location.parse(str(tmp_path))
        write_features(directory, UNITS, trunks=("before", "after"))
        with pytest.raises(UsageError, match="features of u0 and u1 are of different weights: delete"):
            FeatureRows.open(directory)

    def test_outputs_of_different_transforms(self, tmp_path: Path) -> None:
        directory = Location.parse(str(tmp_path))
        write_features(directory, UNITS, transforms=("128 pixels", "224 pixels"))
        with pytest.raises(UsageError, match="features of u0 and u1 are of different image transforms: delete"):
            FeatureRows.open(directory)

    def test_features_of_another_model(self, features: Location) -> None:
        rows = FeatureRows.open(features)
        require_same_input(rows, "t", "c", features)
        with pytest.raises(UsageError, match="are of other weights than the model's locked parts: restore the model"):
            require_same_input(rows, "other", "c", features)
        with pytest.raises(UsageError, match="are of another image transform than the model's"):
            require_same_input(rows, "t", "other", features)
