"""Results of every model, rule and control on a task, computed from stored cosines."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from mode_ray.config.evaluate import RoutingConfig, RoutingRule
from mode_ray.evaluate.measure.measurements import TaskCosines, TaskSummary
from mode_ray.evaluate.report.compare import Router, TaskResults, compare, pruning_counts
from mode_ray.evaluate.tasks.task import Task
from mode_ray.routing.weights import ExpertCenters

RULES: tuple[RoutingRule, ...] = get_args(RoutingRule)
EXPERTS = ["n2/00", "n2/01"]
RANDOM = ["random-n2/00", "random-n2/01"]
CENTERS_MD = np.eye(4, dtype=np.float32)
GROUP_M = np.array([0, 0, 1, 1], np.int32)
CLASSIFICATION = Task(name="t", kind="classification", paths=("x",), classes=("a", "b"))
RETRIEVAL = Task(name="t", kind="retrieval", paths=("x",))


def measured(cosines: dict[str, np.ndarray], labels: list[int], routing: np.ndarray) -> TaskCosines:
    texts = next(iter(cosines.values())).shape[1]
    summary = TaskSummary(
        task="t",
        models=tuple(cosines),
        logit_scales=dict.fromkeys(cosines, 14.0),
        images=len(labels),
        texts=tuple(f"text {number}" for number in range(texts)),
        skipped={},
        examples={},
    )
    return TaskCosines(summary, cosines, np.array(labels), routing)


def router(group_m: np.ndarray = GROUP_M, missing: tuple[int, ...] = ()) -> Router:
    centers = ExpertCenters(CENTERS_MD, group_m, n=len(EXPERTS), fitted_temperature=0.1)
    return Router(centers=centers, config=RoutingConfig(), missing=missing)


def results(task: Task, cosines: TaskCosines, controls: dict[str, list[str]] | None = None) -> TaskResults:
    return compare(task, cosines, EXPERTS, controls or {}, router(), RULES)


# Right for both images, and wrong for both; the wrong one is surer of itself.
RIGHT = np.array([[0.6, 0.4], [0.4, 0.6]], np.float32)
WRONG = np.array([[0.1, 0.9], [0.9, 0.1]], np.float32)


@pytest.fixture
def classification() -> TaskCosines:
    """Texts at a center of expert 0, which is right. Expert 1 is wrong with higher scores."""
    cosines = {"dense": WRONG, "n2/00": RIGHT, "n2/01": WRONG, RANDOM[0]: WRONG, RANDOM[1]: RIGHT}
    return measured(cosines, [0, 1], CENTERS_MD[[0, 1]])


class TestClassification:
    def test_every_model_alone_and_every_rule_has_metrics(self, classification: TaskCosines) -> None:
        found = results(CLASSIFICATION, classification, {"random": RANDOM})
        assert set(found.single) == {"dense", *EXPERTS, *RANDOM}
        assert set(found.rules) == set(found.weights) == set(RULES)
        assert found.single["n2/00"]["top1"] == 1.0
        assert found.single["dense"]["top1"] == 0.0

    def test_routing_follows_the_texts_and_the_uniform_ensemble_does_not(self, classification: TaskCosines) -> None:
        found = results(CLASSIFICATION, classification)
        assert found.rules["soft"]["top1"] == 1.0
        assert found.rules["uniform"]["top1"] == 0.0
        np.testing.assert_allclose(found.weights["uniform"].weights_c, [0.5, 0.5])
        for rule in RULES:
            weights_c = found.weights[rule].weights_c
            assert weights_c.sum() == pytest.approx(1.0)
            assert weights_c[0] >= weights_c[1]
            assert found.weights[rule].rule == rule

    def test_chance_is_that_of_the_main_metric(self, classification: TaskCosines) -> None:
        assert results(CLASSIFICATION, classification).chance == 0.5

    def test_a_control_is_the_uniform_ensemble_of_its_models(self, classification: TaskCosines) -> None:
        assert results(CLASSIFICATION, classification).controls == {}
        assert results(CLASSIFICATION, classification, {"random": RANDOM}).controls["random"]["top1"] == 0.0
        better = measured({**classification.cosines, RANDOM[0]: RIGHT}, [0, 1], CENTERS_MD[[0, 1]])
        found = results(CLASSIFICATION, better, {"random": RANDOM, "full": ["n2/01"]})
        assert found.controls["random"]["top1"] == 1.0
        assert found.controls["full"] == found.single["n2/01"]

    def test_the_order_of_the_experts_is_that_of_the_coarse_map(self) -> None:
        swapped = measured({"n2/00": WRONG, "n2/01": RIGHT}, [0, 1], CENTERS_MD[[0, 1]])
        assert results(CLASSIFICATION, swapped).rules["soft"]["top1"] == 0.0

    def test_an_expert_without_a_center_has_no_say(self) -> None:
        cosines = measured({"n2/00": RIGHT, "n2/01": WRONG}, [0, 1], CENTERS_MD[[0, 1]])
        nobody = np.zeros(4, np.int32)
        found = compare(CLASSIFICATION, cosines, EXPERTS, {}, router(nobody), ["soft"])
        np.testing.assert_allclose(found.weights["soft"].weights_c, [1.0, 0.0])


class TestRetrieval:
    def test_every_query_is_a_task_of_its_own_when_images_are_retrieved(self) -> None:
        # Text 0 lies at expert 0, text 1 at expert 1. Each expert is right for its own text and surely wrong for the
        # other's: weights of the whole task (one half each) get both queries wrong, weights of each query both right.
        own_is_0 = np.array([[0.6, 0.9], [0.4, 0.1]], np.float32)
        own_is_1 = np.array([[0.1, 0.4], [0.9, 0.6]], np.float32)
        found = results(RETRIEVAL, measured({"n2/00": own_is_0, "n2/01": own_is_1}, [0, 1], CENTERS_MD[[0, 2]]))
        np.testing.assert_allclose(found.weights["soft"].weights_c, [0.5, 0.5], atol=1e-6)
        assert found.rules["soft"]["text_to_image_r1"] == 1.0
        assert found.rules["uniform"]["text_to_image_r1"] == 0.0

    def test_all_texts_are_the_task_when_texts_are_retrieved(self) -> None:
        good = np.array([[0.9, 0.1], [0.1, 0.9]], np.float32)
        found = results(RETRIEVAL, measured({"n2/00": good, "n2/01": -good}, [0, 1], CENTERS_MD[[0, 0]]))
        assert found.rules["soft"]["image_to_text_r1"] == 1.0
        # Uniform weights cancel to zero: of equal scores the first text wins.
        assert found.rules["uniform"]["image_to_text_r1"] == 0.5
        assert found.single["n2/01"]["image_to_text_r1"] == 0.0


class TestEqualCaptions:
    """Two images with the same caption; each one's own text scores lower for it than the other's."""

    CROSSED = np.array([[0.4, 0.6], [0.6, 0.4]], np.float32)

    def recall(self, task: Task) -> float:
        cosines = measured(dict.fromkeys(EXPERTS, self.CROSSED), [0, 1], CENTERS_MD[[0, 1]])
        same = TaskCosines(
            replace(cosines.summary, texts=("keycap", "keycap")), cosines.cosines, cosines.labels, CENTERS_MD[[0, 0]]
        )
        return results(task, same).rules["uniform"]["text_to_image_r1"]

    def test_they_are_one_text_by_default(self) -> None:
        assert self.recall(RETRIEVAL) == 1.0

    def test_they_count_apart_where_the_task_says_so(self) -> None:
        assert self.recall(RETRIEVAL.model_copy(update={"equal_captions": "apart"})) == 0.0


class TestDraws:
    def test_the_lines_that_may_be_compared_are_resampled_alike(self, classification: TaskCosines) -> None:
        found = results(CLASSIFICATION, classification, {"random": RANDOM})
        assert set(found.draws) == {*RULES, "dense", "random"}
        both = measured({**classification.cosines, "dense-equal-total": RIGHT}, [0, 1], CENTERS_MD[[0, 1]])
        np.testing.assert_array_equal(results(CLASSIFICATION, both).draws["dense-equal-total"], found.draws["soft"])
        again = results(CLASSIFICATION, classification, {"random": RANDOM})
        np.testing.assert_array_equal(found.draws["soft"], again.draws["soft"])
        np.testing.assert_array_equal(found.draws["soft"], 1.0 - found.draws["dense"])


class TestPruning:
    def test_the_curve_ends_at_the_whole_ensemble(self, classification: TaskCosines) -> None:
        found = results(CLASSIFICATION, classification)
        top = [pruned for pruned in found.pruned if pruned.keep == "top"]
        assert [pruned.value for pruned in top] == [1.0, 2.0]
        assert [pruned.experts_run for pruned in top] == [1.0, 2.0]
        assert top[-1].metrics == found.rules["calibrated"]

    def test_a_share_runs_as_few_experts_as_cover_it(self, classification: TaskCosines) -> None:
        # Both texts lie at centers of expert 0, which has nearly all of the weight.
        found = results(CLASSIFICATION, classification)
        shares = [pruned for pruned in found.pruned if pruned.keep == "share"]
        assert {pruned.experts_run for pruned in shares} == {1.0}
        assert shares[0].metrics["top1"] == 1.0

    def test_queries_that_are_tasks_of_their_own_are_pruned_by_themselves(self) -> None:
        # Text 0 lies at expert 0, text 1 at expert 1: one expert each answers both, though both experts run in all.
        own_is_0 = np.array([[0.6, 0.9], [0.4, 0.1]], np.float32)
        own_is_1 = np.array([[0.1, 0.4], [0.9, 0.6]], np.float32)
        found = results(RETRIEVAL, measured({"n2/00": own_is_0, "n2/01": own_is_1}, [0, 1], CENTERS_MD[[0, 2]]))
        first = found.pruned[0]
        assert (first.keep, first.value, first.experts_run) == ("top", 1.0, 1.0)
        assert first.metrics["text_to_image_r1"] == 1.0

    def test_there_is_no_curve_where_the_configs_rule_is_not_evaluated(self, classification: TaskCosines) -> None:
        assert compare(CLASSIFICATION, classification, EXPERTS, {}, router(), ["paper"]).pruned == []

    @pytest.mark.parametrize(
        ("n", "counts"),
        [(1, [1]), (4, [1, 2, 3, 4]), (8, [*range(1, 9)]), (16, [*range(1, 9), 16]), (20, [*range(1, 9), 16, 20])],
    )
    def test_many_experts_are_shown_in_powers_of_two(self, n: int, counts: list[int]) -> None:
        assert pruning_counts(n) == counts


class TestMissingExperts:
    def test_their_stored_cosines_count_for_nothing(self) -> None:
        cosines = measured({"n2/00": RIGHT, "n2/01": WRONG}, [0, 1], CENTERS_MD[[0, 1]])
        found = compare(CLASSIFICATION, cosines, EXPERTS, {}, router(missing=(0,)), RULES)
        assert {found.rules[rule]["top1"] for rule in RULES} == {0.0}

    def test_the_others_answer_with_all_of_the_weight(self) -> None:
        cosines = measured({"dense": RIGHT, "n2/01": WRONG}, [0, 1], CENTERS_MD[[0, 1]])
        found = compare(CLASSIFICATION, cosines, EXPERTS, {}, router(missing=(0,)), RULES)
        for rule in RULES:
            assert found.weights[rule].weights_c.tolist() == [0.0, 1.0]
            assert found.rules[rule] == found.single["n2/01"]
        assert set(found.single) == {"dense", "n2/01"}

    def test_queries_of_their_own_are_answered_too(self) -> None:
        good = np.array([[0.9, 0.1], [0.1, 0.9]], np.float32)
        cosines = measured({"n2/01": good}, [0, 1], CENTERS_MD[[0, 2]])
        found = compare(RETRIEVAL, cosines, EXPERTS, {}, router(missing=(0,)), ["calibrated"])
        assert found.rules["calibrated"]["text_to_image_r1"] == 1.0
