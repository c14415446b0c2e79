"""What the ensemble has to answer whichever of its experts are left out, from the same models without Ray and HTTP."""

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from serve_load import Reply
from serving_process import IMAGES, LABELS, TEMPLATE, png

from mode_ray.config.run import RunConfig
from mode_ray.serve.http.answers import classify_answer
from mode_ray.serve.in_process import local_service
from mode_ray.serve.service.ensemble_service import EnsembleService
from mode_ray.serve.service.metrics import prometheus_metrics
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.serve.service.task_definition import TaskDefinition
from mode_ray.storage import Location

TOLERANCE = 1e-5


class Answers:
    """What every answer must be: the in-process ensemble's, or the same scaled to the experts that are in it."""

    def __init__(self, config: RunConfig, replacements: Mapping[int, Location]) -> None:
        self._first = in_process_answers(config, {})
        self._second = in_process_answers(config, replacements)

    def require(self, reply: Reply, *, replaced: bool | None) -> None:
        """Compare one answer; `replaced`: whether the replacements answer, None while it may be either."""
        distance = self.distance(reply, replaced=replaced)
        assert distance < TOLERANCE, f"wrong by {distance} with {reply.answer['left_out']} left out"

    def distance(self, reply: Reply, *, replaced: bool | None) -> float:
        """The largest difference between an answer's scores and what they must be."""
        answer = reply.answer
        assert answer["degraded"] == bool(answer["left_out"])
        got = by_label(answer["results"][0])
        candidates = {False: [self._first], True: [self._second], None: [self._first, self._second]}[replaced]
        distances = []
        for full in candidates:
            experts = full[reply.image]["results"][0]["experts"]
            kept = [expert for expert in experts if expert["id"] not in answer["left_out"]]
            total = sum(expert["weight"] for expert in kept)
            names = full[reply.image]["results"][0]["labels"]
            expected = sum(np.array(expert["scores"]) * (expert["weight"] / total) for expert in kept)
            distances.append(np.max([abs(got[name] - score) for name, score in zip(names, expected, strict=True)]))
        return float(min(distances))


def in_process_answers(config: RunConfig, others: Mapping[int, Location]) -> list[dict[str, Any]]:
    """What the ensemble answers without Ray and HTTP, for every image; some experts' models lie elsewhere."""
    run = ServedRun.load(Location.parse(config.run))
    served = dataclasses.replace(run, experts={**run.experts, **others})
    task = TaskDefinition(labels=LABELS, templates=(TEMPLATE,), rule=served.config.routing.rule)

    async def every(service: EnsembleService) -> list[dict[str, Any]]:
        found = [await service.score([png(seed)], task) for seed in range(IMAGES)]
        return [classify_answer(scores, served, None, experts=True).model_dump() for scores in found]

    with local_service(served, served.config.serve, prometheus_metrics()) as service:
        return asyncio.run(every(service))


def by_label(result: Mapping[str, Any]) -> dict[str, float]:
    return dict(zip(result["labels"], result["scores"], strict=True))
