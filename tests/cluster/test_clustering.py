from pathlib import Path

import numpy as np
import pytest

from mode_ray.cluster.clustering import Clustering
from mode_ray.errors import DataError, UsageError
from mode_ray.storage import Location


@pytest.fixture
def clustering() -> Clustering:
    return Clustering(
        centers_md=np.array([[0, 0], [2, 0], [10, 0], [10, 1]], np.float32),
        prices_m=np.array([0.1, -0.1, 0.0, 0.0]),
        mass_m=np.array([10, 10, 30, 10]),
        squared_distance_m=np.array([1.0, 1.0, 6.0, 2.0]),
        encoder_name="encoder-a",
        coarse={1: np.zeros(4, np.int32), 2: np.array([1, 1, 0, 0], np.int32)},
        training={"rows": 60, "history": [1.5, 1.25]},
    )


@pytest.fixture
def directory(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path / "clusters"))


def test_what_is_saved_is_loaded(clustering: Clustering, directory: Location) -> None:
    clustering.save(directory)
    loaded = Clustering.load(directory)
    for name in ("centers_md", "prices_m", "mass_m", "squared_distance_m"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(clustering, name))
        assert getattr(loaded, name).dtype == getattr(clustering, name).dtype
    assert loaded.encoder_name == "encoder-a"
    assert loaded.training == clustering.training
    assert set(loaded.coarse) == {1, 2}
    np.testing.assert_array_equal(loaded.experts_of(2), clustering.experts_of(2))


def test_equal_clusterings_are_equal_bytes(clustering: Clustering, directory: Location) -> None:
    clustering.save(directory)
    before = (directory / "fine.safetensors").read_bytes()
    Clustering.load(directory).save(directory)
    assert (directory / "fine.safetensors").read_bytes() == before


def test_spread_is_within_plus_between(clustering: Clustering) -> None:
    # Expert 1: centers at 0 and 2 around centroid 1; expert 0: 30 rows at y=0 and 10 at y=1 around y=0.25.
    between = (30 * 0.25**2 + 10 * 0.75**2) / 40
    np.testing.assert_allclose(clustering.spread(2), [8 / 40 + between, 2 / 20 + 1.0])
    assert clustering.widest_first(2) == [1, 0]


def test_spread_equals_the_rows_mean_squared_distance() -> None:
    rng = np.random.default_rng(0)
    rows, fine = rng.normal(size=(300, 5)), rng.integers(0, 6, 300)
    centers = np.stack([rows[fine == j].mean(axis=0) for j in range(6)])
    group = np.array([0, 1, 0, 2, 1, 2], np.int32)
    made = Clustering(
        centers_md=centers.astype(np.float32),
        prices_m=np.zeros(6),
        mass_m=np.bincount(fine),
        squared_distance_m=np.bincount(fine, weights=np.square(rows - centers[fine]).sum(axis=1)).astype(np.float64),
        encoder_name="e",
        coarse={3: group},
    )
    direct = [rows[group[fine] == expert].var(axis=0).sum() for expert in range(3)]
    np.testing.assert_allclose(made.spread(3), direct, rtol=1e-5)


def test_equal_spreads_are_ordered_by_size() -> None:
    made = Clustering(
        centers_md=np.zeros((3, 1), np.float32),
        prices_m=np.zeros(3),
        mass_m=np.array([5, 9, 0]),
        squared_distance_m=np.array([5.0, 9.0, 0.0]),
        encoder_name="e",
        coarse={3: np.arange(3, dtype=np.int32)},
    )
    assert made.widest_first(3) == [1, 0, 2]


def test_an_unknown_n_names_those_there_are(clustering: Clustering) -> None:
    with pytest.raises(UsageError, match=r"n=8, only for \[1, 2\].*coarse.experts"):
        clustering.experts_of(8)


def test_other_embeddings_are_refused_by_both_names(clustering: Clustering) -> None:
    clustering.compatible_with("encoder-a", 2)
    with pytest.raises(DataError, match=r"'encoder-a' \(2 dimensions\).*'encoder-b' \(2 dimensions\)"):
        clustering.compatible_with("encoder-b", 2)
    with pytest.raises(DataError, match="384"):
        clustering.compatible_with("encoder-a", 384)


@pytest.mark.parametrize("name", ["fine.safetensors", "coarse-n2.safetensors"])
def test_absent_and_corrupt_files_are_named(clustering: Clustering, directory: Location, name: str) -> None:
    clustering.save(directory)
    good = (directory / name).read_bytes()
    for bad in (b"", b"not a tensor file", good[:-5], good[:40], b"\xff" * 8 + good[8:]):
        (directory / name).write_bytes(bad)
        with pytest.raises(DataError, match=name):
            Clustering.load(directory)
    (directory / name).delete()
    with pytest.raises(DataError, match=f"{name}: no such file"):
        Clustering.load(directory)


def test_a_map_of_another_clustering_is_refused(clustering: Clustering, directory: Location) -> None:
    clustering.save(directory)
    other = Clustering(
        centers_md=np.zeros((3, 2), np.float32),
        prices_m=np.zeros(3),
        mass_m=np.ones(3, np.int64),
        squared_distance_m=np.zeros(3),
        encoder_name="e",
        coarse={2: np.array([0, 1, 1], np.int32)},
    )
    elsewhere = directory / "other"
    other.save(elsewhere)
    (directory / "coarse-n2.safetensors").write_bytes((elsewhere / "coarse-n2.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"coarse-n2.safetensors: not a map of 4 fine centers into 2 experts"):
        Clustering.load(directory)


def test_the_fine_file_of_another_program_is_refused(clustering: Clustering, directory: Location) -> None:
    clustering.save(directory)
    (directory / "fine.safetensors").write_bytes((directory / "coarse-n2.safetensors").read_bytes())
    with pytest.raises(DataError, match="'centers_md' is missing"):
        Clustering.load(directory)
