"""The temperature that maximises the likelihood of a hidden center's expert."""

from pathlib import Path

import numpy as np
import pytest

from mode_ray.cluster.both_steps import fit_clustering
from mode_ray.cluster.calibration import (
    CALIBRATION_KEY,
    NOT_FITTED,
    TEMPERATURES,
    calibration_of,
    calibration_rows,
    evenly_spaced,
    fit_temperature,
    stored_form,
)
from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.fit.sample_rows import LocalRows
from mode_ray.config.cluster import ClusterConfig
from mode_ray.errors import DataError
from mode_ray.storage import Location


def overlapping(seed: int = 0, m: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Captions around centers of two experts that overlap: near centers mostly agree on the expert, not always."""
    generator = np.random.default_rng(seed)
    group = np.arange(m) % 2
    centers = generator.normal(size=(m, 3)) * 0.2 + group[:, None] * 0.25
    captions = np.repeat(centers, 4, axis=0) + generator.normal(size=(4 * m, 3)) * 0.05
    return captions, centers, group


def hidden_log_loss(captions: np.ndarray, centers: np.ndarray, group: np.ndarray, temperature: float) -> float:
    """The loss written out, one caption after the other."""
    losses = []
    for caption in captions:
        squared = np.square(centers - caption).sum(axis=1)
        own = squared.argmin()
        nearness = np.where(np.arange(len(centers)) == own, 0.0, np.exp(-squared / temperature))
        losses.append(-np.log(nearness[group == group[own]].sum() / nearness.sum()))
    return float(np.mean(losses))


def test_it_minimises_the_loss() -> None:
    captions, centers, group = overlapping()
    found = fit_temperature(captions, centers, group)
    assert found.temperature is not None
    assert found.log_loss == pytest.approx(hidden_log_loss(captions, centers, group, found.temperature), abs=1e-3)
    for factor in (0.8, 1.25):
        assert hidden_log_loss(captions, centers, group, found.temperature * factor) > found.log_loss
    assert found.share_log_loss == pytest.approx(np.log(2.0), abs=1e-2)
    assert found.log_loss < found.share_log_loss
    assert found.rows == 240


def test_it_grows_with_the_encoders_distances() -> None:
    captions, centers, group = overlapping()
    small = fit_temperature(captions, centers, group).temperature
    large = fit_temperature(2.0 * captions, 2.0 * centers, group).temperature
    assert small is not None
    assert large == pytest.approx(4.0 * small, rel=0.01)


def test_one_expert_answers_if_near_centers_always_agree() -> None:
    captions, centers, group = overlapping()
    shift = np.array([3.0, 0.0, 0.0])
    found = fit_temperature(captions + np.repeat(group, 4)[:, None] * shift, centers + group[:, None] * shift, group)
    assert found.temperature is not None
    assert np.exp(-3.0 / found.temperature) < 1e-3
    assert found.log_loss == 0.0


def test_all_answer_if_near_centers_are_random() -> None:
    generator = np.random.default_rng(1)
    centers = generator.normal(size=(600, 32))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    found = fit_temperature(centers, centers, generator.integers(0, 2, 600))
    assert found.temperature is not None
    assert found.temperature > 0.5
    assert found.log_loss == pytest.approx(np.log(2.0), abs=0.02)


@pytest.mark.parametrize("group", [np.zeros(60, int), np.arange(60)])
def test_one_expert_or_one_center_an_expert_leaves_nothing_to_fit(group: np.ndarray) -> None:
    captions, centers, _ = overlapping()
    assert fit_temperature(captions, centers, group) == NOT_FITTED


def test_an_expert_with_a_single_center_is_not_asked_for() -> None:
    _, centers, group = overlapping()
    group[7] = 2
    found = fit_temperature(centers, centers, group)
    assert found.rows == 59
    assert np.isfinite(found.log_loss)


def test_equal_captions_and_equal_centers_are_no_trouble() -> None:
    centers = np.tile([[1.0, 0.0]], (6, 1))
    found = fit_temperature(centers, centers, np.array([0, 0, 0, 1, 1, 1]))
    # All others are equally far: two of five are of the first caption's expert.
    assert found.log_loss == pytest.approx(-np.log(2 / 5), abs=1e-4)


def test_rows_are_spread_over_the_sample_and_bounded() -> None:
    assert evenly_spaced(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly_spaced(3, 100).tolist() == [0, 1, 2]
    assert calibration_rows(4) == 4096
    assert calibration_rows(1024) == 512
    assert calibration_rows(1_000_000) == 256


def clustering(**training: object) -> Clustering:
    _, centers, group = overlapping()
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
    def test_an_old_one_has_none_and_the_note_names_the_fallback(self) -> None:
        assert calibration_of(clustering(), 2) == NOT_FITTED
        assert calibration_of(clustering(**{CALIBRATION_KEY: {}}), 2) == NOT_FITTED
        assert "uses routing.temperature, as soft does" in NOT_FITTED.note

    def test_the_stored_one_comes_back(self) -> None:
        stored = fit_temperature(*overlapping())
        again = calibration_of(clustering(**{CALIBRATION_KEY: stored_form({2: stored})}), 2)
        assert again == stored
        assert "240 captions" in again.note

    @pytest.mark.parametrize("stored", [{"2": 3}, ["x"], {"2": {"temperature": "hot"}}, {"2": {"temperature": -1.0}}])
    def test_a_damaged_one_is_refused_and_the_error_says_how_to_fix_it(self, stored: object) -> None:
        with pytest.raises(DataError, match=r"stored calibration for n=2 is damaged.*routing.rule=soft"):
            calibration_of(clustering(**{CALIBRATION_KEY: stored}), 2)

    def test_the_cluster_stage_stores_one_for_every_map(self, tmp_path: Path) -> None:
        rows = np.concatenate([overlapping(seed)[1] for seed in range(8)])
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
            assert found.rows == 480
            assert found.temperature is not None
            assert TEMPERATURES[0] * 0.999 <= found.temperature <= TEMPERATURES[1] * 1.001
