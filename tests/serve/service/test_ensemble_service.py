import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from serving import EXPERTS, MakeService, picture, with_failing

from mode_ray.config.evaluate import RoutingConfig
from mode_ray.embed.encoder import CaptionEncoder
from mode_ray.evaluate.measure.similarities import zero_shot_classifier
from mode_ray.models.encode import Expert
from mode_ray.pairs.images import decode_image
from mode_ray.routing.mix import ensemble_scores, probabilities
from mode_ray.routing.router import expert_centers
from mode_ray.routing.weights import routing_weights
from mode_ray.serve.service.errors import ServiceError
from mode_ray.serve.service.expert_client import ExpertBusy, ExpertUnavailable
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.serve.service.task_definition import TaskDefinition

LABELS, TEMPLATES = ("cat", "dog", "bus", "apple"), ("a photo of a {}.", "one {}")
PETS = TaskDefinition(labels=LABELS, templates=TEMPLATES, rule="soft")


class Forgetful:
    """A caption encoder that knows no word of some texts."""

    def __init__(self, encoder: CaptionEncoder, unknown: str) -> None:
        self._encoder, self._unknown = encoder, unknown
        self.name, self.dimension = encoder.name, encoder.dimension

    def encode(self, captions: list[str]) -> npt.NDArray[np.float32]:
        known = np.array([self._unknown not in caption for caption in captions])
        return np.asarray(self._encoder.encode(captions) * known[:, None], np.float32)


class TestScore:
    def test_scores_and_probabilities_are_those_of_the_ensemble_in_a_loop(
        self, make_service: MakeService, served: ServedRun, images: Sequence[bytes]
    ) -> None:
        found = asyncio.run(make_service().score(images, PETS))
        encoder = served.load_encoder()
        weights_c = routing_weights(
            zero_shot_classifier(PETS.class_texts(), encoder.encode),
            expert_centers(served.clustering, EXPERTS),
            RoutingConfig(rule="soft"),
        ).weights_c
        experts = [Expert(folder, "cpu") for folder in served.experts.values()]
        decoded = [decode_image(data, 10**6, "x") for data in images]
        cosines_cil = np.stack(
            [
                expert.encode_images(torch.stack([expert.prepare(image) for image in decoded]))
                @ zero_shot_classifier(PETS.class_texts(), expert.encode_texts).T
                for expert in experts
            ]
        )
        scores_il = ensemble_scores(cosines_cil, weights_c)
        scales_c = np.array([expert.logit_scale for expert in experts])
        np.testing.assert_allclose(found.weights, weights_c, atol=1e-9)
        np.testing.assert_allclose(found.scores_il, scores_il, atol=1e-5)
        np.testing.assert_allclose(found.probabilities_il, probabilities(scores_il, weights_c, scales_c), atol=1e-4)

    def test_requests_at_the_same_time_get_what_they_get_alone(self, make_service: MakeService) -> None:
        service = make_service()
        pictures = [picture(seed) for seed in range(20)]

        async def together() -> list[npt.NDArray[np.floating]]:
            found = await asyncio.gather(*(service.score([data], PETS) for data in pictures))
            return [scores.scores_il[0] for scores in found]

        async def at_once() -> npt.NDArray[np.floating]:
            return (await service.score(pictures, PETS)).scores_il

        np.testing.assert_allclose(asyncio.run(together()), asyncio.run(at_once()), atol=1e-5)

    def test_pruning_asks_only_the_experts_that_it_keeps(self, make_service: MakeService) -> None:
        service = make_service(pruning={"experts": 1})
        best = int(np.argmax(asyncio.run(service.task(PETS)).weights_c))
        others: dict[int, Exception | None] = {
            expert: RuntimeError("was asked") for expert in range(EXPERTS) if expert != best
        }
        found = asyncio.run(with_failing(service, others).score([picture(1)], PETS))
        assert (list(found.cosines_il), found.left_out) == ([best], ())
        assert found.weights[best] == pytest.approx(1.0)

    @pytest.mark.parametrize("error", [None, ExpertUnavailable("down")])
    def test_an_expert_that_does_not_answer_is_left_out_and_named(
        self, make_service: MakeService, error: Exception | None
    ) -> None:
        service = with_failing(make_service(expert_deadline_seconds=0.5), {1: error})
        found = asyncio.run(service.score([picture(1)], PETS))
        assert found.left_out == (1,)
        assert found.weights[1] == 0.0
        assert found.weights.sum() == pytest.approx(1.0)
        full = asyncio.run(service.task(PETS)).weights_c
        assert found.weights[0] / found.weights[2] == pytest.approx(full[0] / full[2])

    def test_where_all_that_pruning_keeps_are_down_the_next_ones_answer(self, make_service: MakeService) -> None:
        service = make_service(pruning={"experts": 1})
        best = int(np.argmax(asyncio.run(service.task(PETS)).weights_c))
        found = asyncio.run(with_failing(service, {best: ExpertUnavailable("down")}).score([picture(1)], PETS))
        assert found.left_out == (best,)
        assert len(found.cosines_il) == 1

    @pytest.mark.parametrize(
        ("error", "code"), [(ExpertUnavailable("down"), "unavailable"), (ExpertBusy("full"), "overloaded")]
    )
    def test_without_any_expert_the_answer_is_503(
        self, make_service: MakeService, error: Exception, code: str
    ) -> None:
        service = with_failing(make_service(), dict.fromkeys(range(EXPERTS), error))
        with pytest.raises(ServiceError) as caught:
            asyncio.run(service.score([picture(1)], PETS))
        assert (caught.value.status, caught.value.code) == (503, code)
        assert caught.value.retry_after_seconds

    def test_a_replaced_expert_answers_with_its_own_texts(self, make_service: MakeService) -> None:
        service, other = make_service(), make_service()
        before = asyncio.run(service.score([picture(1)], PETS)).cosines_il
        clients = dict(other._clients)
        swapped = clients[1]
        swapped.id = 0
        service.set_clients({**service._clients, 0: swapped})
        after = asyncio.run(service.score([picture(1)], PETS)).cosines_il
        np.testing.assert_allclose(after[0], before[1], atol=1e-5)


class TestTask:
    def test_labels_that_the_encoder_does_not_know_are_named_and_not_routed_by(
        self, make_service: MakeService
    ) -> None:
        service = make_service()
        router = service._tasks._open_router()
        router._encoder = Forgetful(router._encoder, "xyzzy")
        bare = {"templates": ("{}",), "rule": "soft"}
        known = asyncio.run(service.task(TaskDefinition(labels=("cat",), **bare)))
        both = asyncio.run(service.task(TaskDefinition(labels=("cat", "xyzzy"), **bare)))
        assert list(both.unknown) == ["xyzzy"]
        np.testing.assert_allclose(both.weights_c, known.weights_c)
        with pytest.raises(ServiceError, match="knows no word"):
            asyncio.run(service.task(TaskDefinition(labels=("xyzzy",), **bare)))

    def test_a_registered_task_is_known_to_the_next_process(self, make_service: MakeService, tmp_path: Path) -> None:
        asyncio.run(make_service().register(PETS))
        again = asyncio.run(make_service().task(PETS.id))
        assert again.definition == PETS
        next((tmp_path / "tasks").iterdir()).write_text(PETS.model_copy(update={"rule": "paper"}).model_dump_json())
        with pytest.raises(ServiceError, match="no task"):
            asyncio.run(make_service().task(PETS.id))

    def test_the_oldest_stored_tasks_go(self, make_service: MakeService, tmp_path: Path) -> None:
        service = make_service(max_stored_tasks=2)
        for label in ("cat", "dog", "bus", "apple"):
            task = TaskDefinition(labels=(label,), templates=("{}",), rule="soft")
            asyncio.run(service.register(task))
        assert len(list((tmp_path / "tasks").iterdir())) <= 3
