"""The probe compared with an independent minimiser of the same loss, the choice of its penalty, and its errors."""

import numpy as np
import pytest
import scipy.optimize
from scipy.special import log_softmax

from mode_ray.errors import DataError
from mode_ray.evaluate.measure.linear_probe import concatenated, fit_linear_probe


def blobs(images: int, classes: int, width: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around one direction per class; the directions are the same for every seed."""
    centers = np.random.default_rng(99).standard_normal((classes, width))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    features = centers[labels] + spread * generator.standard_normal((images, width))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels


def fit_by_scipy(features: np.ndarray, labels: np.ndarray, classes: int, penalty: float) -> np.ndarray:
    """Class scores of the training images at the minimum of the documented loss, found by scipy."""
    centred = features - features.mean(axis=0)
    rows = np.c_[centred / np.sqrt((centred**2).sum(axis=1).mean() / features.shape[1]), np.ones(len(features))]
    one_hot = np.eye(classes)[labels]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(rows.shape[1], classes)
        log_p = log_softmax(rows @ weights, axis=1)
        decayed = weights * np.r_[np.ones(rows.shape[1] - 1), 0][:, None]
        gradient = rows.T @ (np.exp(log_p) - one_hot) / len(rows) + penalty * decayed
        return -(one_hot * log_p).sum() / len(rows) + penalty / 2 * (decayed**2).sum(), gradient.ravel()

    found = scipy.optimize.minimize(
        loss, np.zeros(rows.shape[1] * classes), jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 1e-15}
    )
    return np.asarray(rows @ found.x.reshape(rows.shape[1], classes))


@pytest.mark.parametrize("penalty", [1.0, 1e-1, 1e-2])
def test_it_finds_the_minimum_of_its_loss(penalty: float) -> None:
    features, labels = blobs(200, 4, 10, 0.8, 0)
    probe = fit_linear_probe(features, labels, 4, penalties=[penalty], device="cpu")
    expected = fit_by_scipy(features, labels, 4, penalty)
    # A constant added to all scores of an image changes no probability.
    found = probe.scores(features)
    np.testing.assert_allclose(
        found - found.mean(axis=1, keepdims=True), expected - expected.mean(axis=1, keepdims=True), atol=2e-3
    )


def test_it_learns_what_can_be_learnt_and_no_more() -> None:
    features, labels = blobs(300, 5, 16, 0.3, 0)
    tested, right = blobs(200, 5, 16, 0.3, 1)
    probe = fit_linear_probe(features, labels, 5, device="cpu")
    assert (probe.scores(tested).argmax(axis=1) == right).mean() > 0.97
    shuffled = np.random.default_rng(0).permutation(labels)
    lost = fit_linear_probe(features, shuffled, 5, device="cpu")
    assert (lost.scores(tested).argmax(axis=1) == right).mean() < 0.5
    assert lost.held_out_accuracy < 0.4


def test_the_penalty_is_the_one_that_serves_the_held_out_images() -> None:
    # More dimensions than images, and mostly noise: without a penalty the fit is of the noise.
    features, labels = blobs(60, 3, 200, 4.0, 0)
    tested, right = blobs(600, 3, 200, 4.0, 1)
    weakest = fit_linear_probe(features, labels, 3, penalties=[1e-6], device="cpu")
    chosen = fit_linear_probe(features, labels, 3, device="cpu")
    assert chosen.held_out_accuracy >= weakest.held_out_accuracy
    assert (chosen.scores(tested).argmax(axis=1) == right).mean() >= 0.9 * (
        weakest.scores(tested).argmax(axis=1) == right
    ).mean()


def test_of_equally_good_penalties_the_largest_is_taken_whatever_their_order() -> None:
    features, labels = blobs(100, 2, 8, 0.01, 0)
    for penalties in ([1e-4, 1e-2], [1e-2, 1e-4]):
        assert fit_linear_probe(features, labels, 2, penalties=penalties, device="cpu").penalty == 1e-2


def test_a_seed_decides_the_result() -> None:
    features, labels = blobs(80, 3, 8, 1.0, 0)
    first, again = (fit_linear_probe(features, labels, 3, seed=1, device="cpu") for _ in range(2))
    np.testing.assert_array_equal(first.weights_dl, again.weights_dl)
    assert first.penalty == again.penalty


def test_classes_with_one_image_or_none_do_no_harm() -> None:
    features, labels = blobs(40, 2, 8, 0.2, 0)
    labels = labels.copy()
    labels[0] = 2
    scores = fit_linear_probe(features, labels, 5, device="cpu").scores(features)
    assert scores.shape == (40, 5)
    assert np.isfinite(scores).all()


def test_many_logits_are_summed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs(90, 3, 8, 0.5, 0)
    whole = fit_linear_probe(features, labels, 3, penalties=[0.1], device="cpu")
    monkeypatch.setattr("mode_ray.evaluate.measure.linear_probe._LOGITS_AT_ONCE", 21)
    blocks = fit_linear_probe(features, labels, 3, penalties=[0.1], device="cpu")
    np.testing.assert_allclose(whole.weights_dl, blocks.weights_dl, atol=1e-3)


def test_ensembles_are_concatenated_by_their_names() -> None:
    one, two = np.ones((3, 2)), np.full((3, 1), 2.0)
    found = concatenated({"dense": one, "n2/01": two, "n2/00": one, "n1/00": one})
    assert list(found) == ["n2"]
    np.testing.assert_array_equal(found["n2"], [[1, 1, 2]] * 3)


def test_concatenated_features_see_what_each_model_alone_does_not() -> None:
    # Each model tells one half of the class number's bits.
    labels = np.random.default_rng(0).integers(0, 4, 200)
    bits = {"n2/00": labels & 1, "n2/01": labels >> 1}
    noise = np.random.default_rng(1)
    features = {name: np.eye(2)[bit] + 0.1 * noise.standard_normal((200, 2)) for name, bit in bits.items()}
    accuracy = {
        name: (fit_linear_probe(rows, labels, 4, device="cpu").scores(rows).argmax(axis=1) == labels).mean()
        for name, rows in {**features, **concatenated(features)}.items()
    }
    assert accuracy["n2"] > 0.95
    assert accuracy["n2/00"] < 0.7
    assert accuracy["n2/01"] < 0.7


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros((3, 2)), np.array([0, 1]), r"shape \(3, 2\) and labels \(2,\)"),
        (np.eye(3), np.array([0, 1, 5]), "labels run from 0 to 5, outside 0 to 2"),
        (np.eye(3), np.array([1, 1, 1]), "two classes; there are 1"),
        (np.eye(3), np.array([0, 1, 2]), "no class has two images"),
        (np.full((4, 2), np.nan), np.array([0, 0, 1, 1]), "not finite"),
        (np.ones((4, 2)), np.array([0, 0, 1, 1]), "all features are equal"),
    ],
)
def test_what_it_cannot_learn_from_is_refused(features: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_linear_probe(features, labels, 3, device="cpu")
