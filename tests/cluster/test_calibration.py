"""The fitted temperature: what the likelihood of a hidden center's expert says, at the scale of the encoder."""

from pathlib import Path

import numpy as np
import pytest

from mode_ray.cluster.calibration import (
    CALIBRATION_KEY,
    NOT_FITTED,
    TEMPERATURES,
    calibration_of,
    fit_on_captions,
    fit_on_centers,
    stored_form,
)
from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.fit import fit_clustering
from mode_ray.cluster.sample_rows import LocalRows
from mode_ray.config import ClusterConfig
from mode_ray.errors import DataError
from mode_ray.storage import Location


def overlapping(seed: int = 0, m: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Centers of two experts that overlap: near centers mostly agree, not always."""
    generator = np.random.default_rng(seed)
    group = np.arange(m) % 2
    return generator.normal(size=(m, 3)) * 0.2 + group[:, None] * 0.25, group


def hidden_log_loss(centers: np.ndarray, group: np.ndarray, temperature: float) -> float:
    """The loss written out, one center after the other."""
    losses = []
    for own, center in enumerate(centers):
        others = np.arange(len(centers)) != own
        nearness = np.exp(-np.square(centers - center).sum(axis=1) / temperature)
        losses.append(-np.log(nearness[others & (group == group[own])].sum() / nearness[others].sum()))
    return float(np.mean(losses))


def test_it_is_where_the_loss_is_least() -> None:
    centers, group = overlapping()
    found = fit_on_centers(centers, group)
    assert found.temperature is not None
    assert found.log_loss == pytest.approx(hidden_log_loss(centers, group, found.temperature), abs=1e-3)
    for factor in (0.8, 1.25):
        assert hidden_log_loss(centers, group, found.temperature * factor) > found.log_loss
    assert found.share_log_loss == pytest.approx(np.log(2.0), abs=1e-4)
    assert found.log_loss < found.share_log_loss
    assert (found.basis, found.rows) == ("centers", 60)


def test_it_grows_with_the_encoders_distances() -> None:
    centers, group = overlapping()
    small, large = fit_on_centers(centers, group).temperature, fit_on_centers(2.0 * centers, group).temperature
    assert small is not None
    assert large == pytest.approx(4.0 * small, rel=0.01)


def test_where_near_centers_always_agree_one_expert_answers() -> None:
    centers, group = overlapping()
    apart = centers * 0.1 + group[:, None] * np.array([1.0, 0.0, 0.0])
    found = fit_on_centers(apart, group).temperature
    assert found is not None
    assert np.exp(-0.3 / found) < 1e-3


def test_where_they_say_nothing_all_answer() -> None:
    generator = np.random.default_rng(1)
    centers = generator.normal(size=(600, 32))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    found = fit_on_centers(centers, generator.integers(0, 2, 600))
    assert found.temperature is not None
    assert found.temperature > 0.5
    assert found.log_loss == pytest.approx(np.log(2.0), abs=0.02)


def test_captions_that_lie_on_the_centers_are_the_centers() -> None:
    centers, group = overlapping()
    on_captions = fit_on_captions(centers, centers, group)
    assert on_captions.temperature == fit_on_centers(centers, group).temperature
    assert on_captions.basis == "captions"


def test_centers_without_captions_count_nothing() -> None:
    centers, group = overlapping()
    mass = np.arange(60) < 40
    found = fit_on_centers(centers, group, mass.astype(np.int64))
    assert found.rows == 40


@pytest.mark.parametrize("group", [np.zeros(60, int), np.arange(60)])
def test_one_expert_or_one_center_an_expert_leaves_nothing_to_fit(group: np.ndarray) -> None:
    assert fit_on_centers(overlapping()[0], group) == NOT_FITTED
    assert "routing.temperature" in NOT_FITTED.note


def test_an_expert_with_a_single_center_is_not_asked_for() -> None:
    centers, group = overlapping()
    group[7] = 2
    found = fit_on_centers(centers, group)
    assert found.rows == 59
    assert found.log_loss is not None
    assert np.isfinite(found.log_loss)


def clustering(**training: object) -> Clustering:
    centers, group = overlapping()
    return Clustering(
        centers_md=centers.astype(np.float32),
        prices_m=np.zeros(60),
        mass_m=np.full(60, 5),
        squared_distance_m=np.ones(60),
        encoder_name="letters",
        coarse={2: group.astype(np.int32)},
        training=training,
    )


class TestOfAClustering:
    def test_an_old_one_is_calibrated_on_its_centers_and_says_so(self) -> None:
        found = calibration_of(clustering(), 2)
        assert found.basis == "centers"
        assert "made without a calibration" in found.note

    def test_the_stored_one_comes_back(self) -> None:
        stored = fit_on_captions(overlapping(3)[0], *overlapping())
        again = calibration_of(clustering(**{CALIBRATION_KEY: stored_form({2: stored})}), 2)
        assert again == stored
        assert "60 captions" in again.note

    @pytest.mark.parametrize(
        "stored", [{"2": 3}, ["x"], {"2": {"temperature": "hot", "basis": "captions"}}, {"2": {"temperature": -1.0}}]
    )
    def test_a_damaged_one_is_refused_with_the_mend(self, stored: object) -> None:
        with pytest.raises(DataError, match="stored calibration for n=2 is damaged.*routing.rule=soft"):
            calibration_of(clustering(**{CALIBRATION_KEY: stored}), 2)

    def test_the_cluster_stage_stores_one_for_every_map(self, tmp_path: Path) -> None:
        rows = np.concatenate([overlapping(seed)[0] for seed in range(8)])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        config = ClusterConfig.model_validate(
            {"sample_rows": 480, "fine": {"centers": 24, "iterations": 4}, "coarse": {"experts": [1, 2, 4]}}
        )
        directory = Location.parse(str(tmp_path))
        fit_clustering(LocalRows(rows), config, "letters", directory)
        made = Clustering.load(directory)
        assert calibration_of(made, 1) == NOT_FITTED
        for n in (2, 4):
            found = calibration_of(made, n)
            assert (found.basis, found.rows) == ("captions", 480)
            assert found.temperature is not None
            assert TEMPERATURES[0] * 0.999 <= found.temperature <= TEMPERATURES[1] * 1.001
