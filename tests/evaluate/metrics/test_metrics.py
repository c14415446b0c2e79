from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from mode_ray.errors import DataError
from mode_ray.evaluate.metrics.metric_table import METRICS
from mode_ray.evaluate.metrics.score import group_means, macro_mean, measure, metric_draws
from mode_ray.evaluate.metrics.scored import Scored, TaskKind


def classification_metrics(scores_il: np.ndarray, labels_i: np.ndarray) -> dict[str, float]:
    return measure(Scored(kind="classification", scores_il=scores_il, labels=labels_i))


def retrieval_metrics(
    scores_ij: np.ndarray,
    image_of_text: np.ndarray,
    captions: Sequence[str] | None = None,
    text_to_image_scores_il: np.ndarray | None = None,
) -> dict[str, float]:
    return measure(
        Scored(
            kind="retrieval",
            scores_il=scores_ij,
            labels=image_of_text,
            captions=captions,
            text_to_image_scores_il=text_to_image_scores_il,
        )
    )


def test_accuracy_over_images_and_over_classes() -> None:
    # Predictions 0, 0, 1, 0 for labels 0, 0, 1, 2: 3 of 4 right; classes 2/2, 1/1, 0/1 -> mean 2/3.
    scores = np.array([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.5]])
    metrics = classification_metrics(scores, np.array([0, 0, 1, 2]))
    assert metrics == pytest.approx({"top1": 0.75, "mean_per_class": 2 / 3})


def test_top5_counts_the_five_highest() -> None:
    # Class c has score -c, so label 4 ranks fifth and label 5 sixth.
    scores = np.tile(-np.arange(7.0), (2, 1))
    metrics = classification_metrics(scores, np.array([4, 5]))
    assert metrics["top5"] == 0.5
    assert metrics["top1"] == 0.0


@pytest.mark.parametrize(("classes", "has_top5"), [(5, False), (6, True)])
def test_top5_is_left_out_where_it_would_be_one_for_any_model(classes: int, has_top5: bool) -> None:
    metrics = classification_metrics(np.eye(classes), np.arange(classes))
    assert ("top5" in metrics) is has_top5


def test_classes_without_images_do_not_count_in_the_mean_per_class() -> None:
    metrics = classification_metrics(np.array([[1.0, 0.0, 0.0]]), np.array([0]))
    assert metrics["mean_per_class"] == 1.0


def test_equal_scores_rank_by_index() -> None:
    metrics = classification_metrics(np.zeros((3, 8)), np.array([0, 4, 5]))
    assert metrics["top1"] == pytest.approx(1 / 3)
    assert metrics["top5"] == pytest.approx(2 / 3)


def test_agrees_with_torch_topk_without_ties() -> None:
    generator = np.random.default_rng(0)
    scores, labels = generator.standard_normal((200, 20)), generator.integers(0, 20, 200)
    top = torch.tensor(scores).topk(5, dim=1).indices.numpy() == labels[:, None]
    metrics = classification_metrics(scores, labels)
    assert metrics["top1"] == pytest.approx(top[:, 0].mean())
    assert metrics["top5"] == pytest.approx(top.any(axis=1).mean())


def test_any_text_of_an_image_is_right() -> None:
    # Image 0 has texts 0, 1 and ranks text 1 first; image 1 has text 2 and ranks it second.
    scores = np.array([[0.1, 0.9, 0.5], [0.0, 0.7, 0.6]])
    metrics = retrieval_metrics(scores, np.array([0, 0, 1]))
    assert metrics["image_to_text_r1"] == 0.5
    # Text 0 finds image 0 (0.1 > 0.0), text 1 finds image 0 (0.9 > 0.7), text 2 finds image 1 (0.6 > 0.5).
    assert metrics["text_to_image_r1"] == 1.0


def test_equal_captions_are_right_for_each_of_their_images() -> None:
    # Texts 0 and 1 read the same, so their columns are equal. By index, image 1 finds text 0 first.
    scores = np.array([[0.9, 0.9, 0.1], [0.8, 0.8, 0.2], [0.3, 0.3, 0.4]])
    image_of_text = np.array([0, 1, 2])
    strict = retrieval_metrics(scores, image_of_text)
    assert strict["image_to_text_r1"] == pytest.approx(2 / 3)
    assert strict["text_to_image_r1"] == pytest.approx(2 / 3)
    fair = retrieval_metrics(scores, image_of_text, ["a cat", "a cat", "a dog"])
    assert fair["image_to_text_r1"] == 1.0
    assert fair["text_to_image_r1"] == 1.0


def test_recall_at_five_and_ten() -> None:
    # Every image scores text j with -j: image i finds its own text at rank i. Every text finds image 0 first.
    scores = np.tile(-np.arange(20.0), (20, 1))
    metrics = retrieval_metrics(scores, np.arange(20))
    assert metrics["image_to_text_r1"] == 1 / 20
    assert metrics["image_to_text_r5"] == 5 / 20
    assert metrics["image_to_text_r10"] == 10 / 20
    # All images score a text alike: ties go by index, so text j finds its image at rank j.
    assert metrics["text_to_image_r5"] == 5 / 20


def test_recalls_that_any_model_would_reach_are_left_out() -> None:
    # 2 images, 7 texts: R@5 says nothing about 2 images, R@10 nothing about 7 texts.
    metrics = retrieval_metrics(np.zeros((2, 7)), np.array([0, 0, 0, 0, 1, 1, 1]))
    assert set(metrics) == {"image_to_text_r1", "image_to_text_r5", "text_to_image_r1"}


def test_images_without_a_text_are_searched_but_not_asked() -> None:
    # Image 2 has no text, yet takes text 1 from image 1.
    scores = np.array([[0.9, 0.0], [0.0, 0.5], [0.0, 0.8]])
    metrics = retrieval_metrics(scores, np.array([0, 1]))
    assert metrics["image_to_text_r1"] == 1.0
    assert metrics["text_to_image_r1"] == 0.5


def test_the_direction_text_to_image_may_have_scores_of_its_own() -> None:
    good, bad = np.eye(3), 1.0 - np.eye(3)
    metrics = retrieval_metrics(good, np.arange(3), text_to_image_scores_il=bad)
    assert metrics["image_to_text_r1"] == 1.0
    assert metrics["text_to_image_r1"] == 0.0


def test_agrees_with_a_plain_sort_in_any_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    image_of_text = generator.integers(0, 40, 90)
    captions = [f"caption {number}" for number in generator.integers(0, 60, 90)]
    scores = generator.standard_normal((40, 90))
    right = np.array(
        [
            [any(image_of_text[k] == i and captions[k] == captions[j] for k in range(90)) for j in range(90)]
            for i in range(40)
        ]
    )
    asked = right.any(axis=1)
    expected = {}
    for rank in (1, 5, 10):
        texts = np.argsort(-scores, axis=1)[:, :rank]
        images = np.argsort(-scores, axis=0)[:rank]
        expected[f"image_to_text_r{rank}"] = np.asarray(np.take_along_axis(right, texts, 1).any(axis=1))[asked].mean()
        expected[f"text_to_image_r{rank}"] = np.take_along_axis(right, images, 0).any(axis=0).mean()
    monkeypatch.setattr("mode_ray.evaluate.metrics.ranking._SCORES_AT_ONCE", 200)
    assert retrieval_metrics(scores, image_of_text, captions) == pytest.approx(expected)


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="expected \\(1, 3\\)"):
        classification_metrics(np.zeros((2, 3)), np.array([0]))
    with pytest.raises(DataError, match="outside 0 to 2"):
        classification_metrics(np.zeros((2, 3)), np.array([0, 3]))
    with pytest.raises(DataError, match="not finite"):
        classification_metrics(np.full((1, 2), np.nan), np.array([0]))
    with pytest.raises(DataError, match="no scores"):
        retrieval_metrics(np.zeros((3, 0)), np.array([], dtype=int))
    with pytest.raises(DataError, match="outside 0 to 1"):
        retrieval_metrics(np.zeros((2, 1)), np.array([2]))
    with pytest.raises(DataError, match="2 captions but 1 texts"):
        retrieval_metrics(np.zeros((2, 1)), np.array([1]), ["a", "b"])


def test_the_mean_over_tasks_needs_all_of_them() -> None:
    assert macro_mean({"a": 0.2, "b": 0.4}) == pytest.approx(0.3)
    assert macro_mean({"a": 0.2, "b": None}) is None
    assert macro_mean({}) is None


def test_a_group_has_a_mean_where_all_of_its_tasks_were_measured() -> None:
    groups = {"v2": ["robustness"], "sketch": ["robustness", "drawings"], "clipart": ["drawings"], "pets": []}
    values = {"v2": 0.2, "sketch": 0.4, "clipart": None, "pets": 0.9}
    assert group_means(values, groups) == {"robustness": pytest.approx(0.3), "drawings": None}
    assert group_means({"v2": 0.2}, {"v2": ["a"], "lost": ["a"]}) == {"a": None}


class TestRocAucOfTwoClasses:
    def test_it_is_the_share_of_pairs_in_the_right_order(self) -> None:
        # Margins of the second class: positives 0.4, 0.0; negatives 0.2, -0.6. Three of four pairs are in order.
        scores = np.array([[0.3, 0.7], [0.5, 0.5], [0.4, 0.6], [0.8, 0.2]])
        metrics = classification_metrics(scores, np.array([1, 1, 0, 0]))
        assert metrics["roc_auc"] == 0.75

    def test_more_classes_or_images_of_one_class_do_not_define_it(self) -> None:
        assert "roc_auc" not in classification_metrics(np.eye(3), np.arange(3))
        assert "roc_auc" not in classification_metrics(np.zeros((2, 2)), np.array([1, 1]))

    def test_a_scale_of_the_scores_changes_nothing(self) -> None:
        generator = np.random.default_rng(1)
        scores, labels = generator.standard_normal((50, 2)), generator.integers(0, 2, 50)
        logits = torch.tensor(3 * scores)
        by_softmax = logits.softmax(dim=1)[:, 1].numpy()
        pairs = by_softmax[labels == 1][:, None] > by_softmax[labels == 0]
        assert classification_metrics(scores, labels)["roc_auc"] == pytest.approx(pairs.mean())


class TestMultilabel:
    # Class 0: ranked 1 and 3 of 3 -> (1 + 2/3) / 2. Class 1: ranked 2 of 3 -> 1/2. Class 2 occurs nowhere.
    ONE_CLASS_ABSENT = Scored(
        kind="multilabel",
        scores_il=np.array([[0.9, 0.5, 0.3], [0.5, 0.9, 0.1], [0.1, 0.1, 0.9]]),
        labels=np.array([[True, True, False], [False, False, False], [True, False, False]]),
    )

    def test_mean_average_precision_counts_a_class_that_no_image_has_as_0(self) -> None:
        metrics = measure(self.ONE_CLASS_ABSENT)
        assert metrics["mean_average_precision"] == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)

    def test_a_class_that_a_resample_alone_lacks_is_left_out_of_it(self) -> None:
        values = METRICS["multilabel"]["mean_average_precision"].values
        # Without image 0 class 1 is absent too, and of class 0 the image ranked 2 of 2 is left.
        without_image_0 = values(self.ONE_CLASS_ABSENT, np.array([[0.0, 1.0, 1.0]]))
        np.testing.assert_allclose(without_image_0, [1 / 2 * 2 / 3])

    def test_roc_auc_is_the_mean_over_the_classes_that_define_it(self) -> None:
        # Class 0: 1 of 2 pairs in order; class 1: 1 of 2.
        assert measure(self.ONE_CLASS_ABSENT)["roc_auc"] == pytest.approx(0.5)

    def test_chance_counts_an_absent_class_as_0_too(self) -> None:
        chance = METRICS["multilabel"]["mean_average_precision"].chance
        present = replace(
            self.ONE_CLASS_ABSENT,
            scores_il=self.ONE_CLASS_ABSENT.scores_il[:, :2],
            labels=self.ONE_CLASS_ABSENT.labels[:, :2],
        )
        assert chance(self.ONE_CLASS_ABSENT) == pytest.approx(chance(present) * 2 / 3)

    def test_without_any_label_there_is_nothing_to_measure(self) -> None:
        nothing = Scored(kind="multilabel", scores_il=np.zeros((2, 2)), labels=np.zeros((2, 2), bool))
        assert measure(nothing) == {}
        assert METRICS["multilabel"]["mean_average_precision"].problem(nothing) == (
            "needs an image with one of the classes; there is none"
        )

    def test_labels_of_another_shape_are_refused(self) -> None:
        with pytest.raises(DataError, match=r"expected \(2, 3\)"):
            Scored(kind="multilabel", scores_il=np.zeros((2, 2)), labels=np.zeros((2, 3), bool))


def random_scored(kind: TaskKind, seed: int, images: int = 60, texts: int = 12) -> Scored:
    generator = np.random.default_rng(seed)
    labels = {
        "classification": generator.integers(0, texts, images),
        "multilabel": generator.random((images, texts)) < 0.2,
        "retrieval": generator.integers(0, images, texts),
    }[kind]
    return Scored(kind=kind, scores_il=generator.standard_normal((images, texts)), labels=labels)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in METRICS.items() for name in names])
def test_every_metric_of_random_scores_is_near_what_chance_reaches(kind: TaskKind, name: str) -> None:
    metric = METRICS[kind][name]
    texts = 2 if (kind, name) == ("classification", "roc_auc") else 12
    once = np.ones((1, 60))
    tried = [random_scored(kind, seed, texts=texts) for seed in range(150)]
    reached = np.mean([metric.values(scored, once)[0] for scored in tried])
    assert reached == pytest.approx(np.mean([metric.chance(scored) for scored in tried]), abs=0.025)


@pytest.mark.parametrize("kind", list(METRICS))
def test_an_image_that_counts_twice_is_as_good_as_two_of_it(kind: TaskKind) -> None:
    scored = random_scored(kind, 5)
    counts = np.random.default_rng(6).integers(0, 3, scored.images)
    repeated = np.repeat(np.arange(scored.images), counts)
    for name, metric in METRICS[kind].items():
        if metric.problem(scored) or kind == "retrieval":  # there the copies would be candidates too
            continue
        copies = Scored(kind=kind, scores_il=scored.scores_il[repeated], labels=scored.labels[repeated])
        assert metric.values(scored, counts[None].astype(float))[0] == pytest.approx(measure(copies)[name]), name


def test_an_image_that_does_not_count_is_not_asked_and_still_searched() -> None:
    # Image 1 takes both texts; only image 0's query counts.
    scored = Scored(kind="retrieval", scores_il=np.array([[0.5, 0.1], [0.9, 0.9]]), labels=np.array([0, 1]))
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 3.0]])
    np.testing.assert_allclose(METRICS["retrieval"]["text_to_image_r1"].values(scored, weights), [0.0, 1.0, 0.75])
    # Of image 1's equal scores the first wins, which is image 0's.
    np.testing.assert_allclose(METRICS["retrieval"]["image_to_text_r1"].values(scored, weights), [1.0, 0.0, 0.25])


@pytest.mark.parametrize(
    ("kind", "metric", "problem"),
    [
        ("classification", "top5", "needs at least 6 classes; this task has 3"),
        ("classification", "roc_auc", "is defined for 2 classes; this task has 3"),
        ("retrieval", "text_to_image_r10", "needs more than 10 images; there are 4"),
        ("retrieval", "image_to_text_r5", "needs more than 5 texts; there are 3"),
        ("classification", "top1", None),
    ],
)
def test_a_metric_says_why_it_cannot_be_measured(kind: TaskKind, metric: str, problem: str | None) -> None:
    scored = random_scored(kind, 0, images=4, texts=3)
    assert METRICS[kind][metric].problem(scored) == problem
    assert (metric in measure(scored)) is (problem is None)


@pytest.mark.parametrize("kind", list(METRICS))
def test_the_draws_of_every_metric_lie_around_it(kind: TaskKind) -> None:
    scored = random_scored(kind, 2, images=300)
    for name, reached in measure(scored).items():
        draws = metric_draws(scored, name, resamples=400)
        assert draws.shape == (400,)
        assert np.nanstd(draws) < 0.2, name
        assert abs(np.nanmean(draws) - reached) <= 1.5 * np.nanstd(draws), name


def test_there_are_no_draws_of_what_cannot_be_measured() -> None:
    with pytest.raises(DataError, match="top5 needs at least 6 classes; this task has 3"):
        metric_draws(random_scored("classification", 0, texts=3), "top5")
