"""Experts on one trunk, two of them in each application of Ray Serve, while they are replaced, removed and added."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from expected_answers import Answers
from serving_process import Serving, free_port, serving_of, until
from tiny_run import build_run, expert_folder, save_expert

from mode_ray.models.clip import load_clip, save_clip
from mode_ray.storage import Location

# One start of Ray and half a minute of changes.
pytestmark = [pytest.mark.drill, pytest.mark.slow]

EXPERTS = 4
APPLICATIONS = ("experts-0-1", "experts-2-3")
REPLACED, REMOVED = 1, 2


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    config = build_run(
        tmp_path_factory.mktemp("served"),
        EXPERTS,
        {
            "port": free_port(),
            "expert_deadline_seconds": 4.0,
            "request_deadline_seconds": 12.0,
            "pruning": {"share": 1.0},
            "router_replicas": {"min": 1, "max": 1},
            "experts_per_replica": 2,
            "runtime": "openvino",
        },
    )
    clip = load_clip(expert_folder(config, 0))
    module: Any = clip.module
    for number in range(1, EXPERTS):
        with torch.no_grad():
            module.visual.proj.add_(torch.randn_like(module.visual.proj), alpha=0.2)
        save_clip(expert_folder(config, number), clip)
    with serving_of(config) as running:
        yield running


@pytest.fixture(scope="module")
def replacement(tmp_path_factory: pytest.TempPathFactory) -> Location:
    folder = Location.parse(str(tmp_path_factory.mktemp("replacement") / "model"))
    save_expert(folder, seed=99)
    return folder


@pytest.fixture(scope="module")
def answers(serving: Serving, replacement: Location) -> Answers:
    return Answers(serving.config, {REPLACED: replacement})


def processes(serving: Serving) -> list[list[int]]:
    """The processes of every application of two experts."""
    return [serving.replicas(name) for name in APPLICATIONS]


def test_a_process_has_two_experts(serving: Serving, answers: Answers) -> None:
    assert [len(found) for found in processes(serving)] == [1, 1]
    answers.require(serving.ask(), replaced=False)


def test_a_killed_process_is_back_with_both_of_them(serving: Serving, answers: Answers) -> None:
    other = serving.replicas(APPLICATIONS[1])
    os.kill(serving.replicas(APPLICATIONS[0])[0], signal.SIGKILL)
    until(lambda: serving.left_out() == [], "the experts are back")
    answers.require(serving.ask(), replaced=False)
    assert serving.replicas(APPLICATIONS[1]) == other


def test_an_expert_is_replaced_while_the_others_stay(
    serving: Serving, answers: Answers, replacement: Location
) -> None:
    before = processes(serving)
    with serving.under_load() as load:
        serving.command("replace", str(REPLACED), "--folder", replacement.uri)
    assert {reply.status for reply in load.replies} == {200}
    for reply in load.replies:
        assert not reply.answer["degraded"]
        answers.require(reply, replaced=None)
    answers.require(serving.ask(), replaced=True)
    assert processes(serving) == before
    assert len(serving.replicas(f"expert-{REPLACED}")) == 1


def test_an_expert_is_removed_and_comes_back_without_a_new_process(serving: Serving, answers: Answers) -> None:
    before = processes(serving)
    with serving.under_load() as load:
        serving.command("remove", str(REMOVED))
        without = serving.ask()
        serving.command("add", str(REMOVED))
    assert {reply.status for reply in load.replies} == {200}
    for reply in [*load.replies, without]:
        assert set(reply.answer["left_out"]) <= {REMOVED}
        answers.require(reply, replaced=True)
    assert without.answer["left_out"] == [REMOVED]
    assert serving.left_out() == []
    assert processes(serving) == before
    assert serving.replicas(f"expert-{REMOVED}") == []
