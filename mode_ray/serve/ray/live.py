"""Adds, removes and replaces experts of a live cluster while the others and the router keep running.

Serve deletes applications that a submitted list lacks. Every step therefore reads the live list, edits it, and submits
the whole list. A new expert runs before the router uses it. An expert is deleted after the router stopped using it.
A replacement gets another application name: the router changes from one application to the other at once, so that no
answer mixes the image features of one model with the text features of another.
"""

import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from mode_ray.errors import DataError, UsageError
from mode_ray.models.files import find_problem
from mode_ray.serve.ray.application_list import (
    Document,
    Held,
    application,
    drain_seconds,
    find_router,
    live_document,
    loaded_expert,
    new_expert,
    other_model,
    served_experts,
    served_run,
    with_applications,
    with_served,
    without_applications,
)
from mode_ray.serve.service.served_run import ServedRun, held_experts
from mode_ray.storage import Location

_POLL_SECONDS = 0.5

Edit = Callable[[Document], Document]


class ServeEndpoint(Protocol):
    """A cluster; `mode_ray.serve.ray.dashboard.ServeDashboard` is one."""

    def get_serve_details(self) -> Document:
        """Details of all applications."""

    def deploy_applications(self, config: Document) -> None:
        """Submit a list; applications that it lacks are deleted."""


class LiveServing:
    """The ensemble of one router application on a live cluster.

    Args:
        endpoint: The cluster.
        say: Prints a line on every step.
        router: Name of the router application, if there are several.
        deadline_seconds: How long an application may take to start.
    """

    def __init__(
        self,
        endpoint: ServeEndpoint,
        say: Callable[[str], None],
        router: str | None = None,
        deadline_seconds: float = 600.0,
    ) -> None:
        self._endpoint = endpoint
        self._say = say
        self._deadline_seconds = deadline_seconds
        self._router: str = find_router(self._document(), router)["name"]

    def add(self, experts: Sequence[int], folder: str | None = None, grown: ServedRun | None = None) -> None:
        """Serve more experts, with the settings of the live ones. The router starts to use all of them at once.

        Args:
            experts: Their numbers, in the served run or in the grown one.
            folder: Another folder for the model of a single expert than the run's.
            grown: A run that reuses live experts and replaces the served run: the router uses its clustering, and live
                experts that it does not have are ended.

        Raises:
            UsageError: There is no such expert, it is served already, nothing is served, or the grown run has experts
                that are neither named nor live.
            DataError: An expert does not start, or a router cannot read the grown run; everything is as before.
        """
        document = self._document()
        live = served_experts(document, self._router)
        kept = live if grown is None else held_experts(grown, _models(document, live))
        for expert in experts:
            if expert in kept:
                raise UsageError(f"expert {expert} is served already: mode-ray serve replace {expert} exchanges it")
        if grown is not None:
            _require_known(grown, experts)
            _require_all(grown, {*kept, *experts})
        before = served_run(document, self._router)
        run = before if grown is None else grown.run.uri
        for expert in experts:
            _require_model(run, expert, folder)
        started: dict[int, Held] = {}
        with_new = document
        for expert in experts:
            held = None if folder else loaded_expert(document, self._router, expert, run)
            if held is None:
                new = new_expert(with_new, self._router, expert, run, folder)
                with_new = with_applications(with_new, [new])
                held = Held(new["name"])
            started[expert] = held
        new_entries = with_new["applications"][len(document["applications"]) :]
        if new_entries:
            self._start(new_entries)

        def edit(now: Document) -> Document:
            others = kept if grown is not None else served_experts(now, self._router)
            return with_served(now, self._router, {**others, **started}, None if grown is None else run)

        def undo(now: Document) -> Document:
            names = [entry["name"] for entry in new_entries]
            return without_applications(with_served(now, self._router, live, before), names)

        self._submit_or_undo(edit, [self._router], undo)
        if unused := _names(live) - _names(kept):
            self._end(document, unused)
        changed = "" if grown is None else f", which now is the ensemble of {run}"
        self._say(f"{_named(experts)} {'is' if len(experts) == 1 else 'are'} in the ensemble{changed}")

    def remove(self, expert: int) -> None:
        """Stop serving an expert.

        Raises:
            UsageError: It is not served, or it is the only one.
        """
        document = self._document()
        self._held(document, expert)
        if len(served_experts(document, self._router)) == 1:
            raise UsageError(f"expert {expert} is the only one: the ensemble needs at least one")

        def edit(now: Document) -> Document:
            served = served_experts(now, self._router)
            return with_served(now, self._router, {id_: held for id_, held in served.items() if id_ != expert})

        self._submit(edit, [self._router])
        self._end_unused(document)
        self._say(f"expert {expert} is out of the ensemble")

    def replace(self, expert: int, folder: str | None = None) -> None:
        """Exchange the model of a served expert: the new one is loaded before the old one is ended.

        Args:
            expert: Its id.
            folder: The new model; by default the same folder, which is read again.

        Raises:
            UsageError: It is not served.
            DataError: The new model does not start; everything is as before.
        """
        document = self._document()
        held = self._held(document, expert)
        given = application(document, held.application)["args"]
        folder = folder or given.get("folder")
        _require_model(given["run"], _number(given, held), folder)
        new = other_model(document, self._router, expert, folder)
        self._start([new])

        def edit(now: Document) -> Document:
            return with_served(now, self._router, served_experts(now, self._router) | {expert: Held(new["name"])})

        self._submit(edit, [self._router])
        self._end_unused(document)
        self._say(f"expert {expert} is replaced")

    def _held(self, document: Document, expert: int) -> Held:
        served = served_experts(document, self._router)
        if expert not in served:
            raise UsageError(f"expert {expert} is not served: the live experts are {sorted(served)}")
        return served[expert]

    def _start(self, new: Sequence[Document]) -> None:
        names = [entry["name"] for entry in new]
        self._say(f"starting {_applications(names)}")
        self._submit_or_undo(
            lambda now: with_applications(now, new), names, lambda now: without_applications(now, names)
        )

    def _end_unused(self, before: Document) -> None:
        """End the applications that served an expert before, and serve none now."""
        unused = _names(served_experts(before, self._router)) - _names(served_experts(self._document(), self._router))
        if unused:
            self._end(before, unused)

    def _end(self, document: Document, names: Collection[str]) -> None:
        """Delete expert applications after the requests that may still use them have ended."""
        seconds = drain_seconds(find_router(document, self._router)["args"].get("settings", {}))
        self._say(f"ending {_applications(names)} in {seconds:g} s, when no request can use it any more")
        time.sleep(seconds)
        self._submit(lambda now: without_applications(now, names))

    def _document(self) -> Document:
        return live_document(self._endpoint.get_serve_details())

    def _submit(self, edit: Edit, waited_for: Sequence[str] = ()) -> None:
        submit(self._endpoint, edit(self._document()))
        wait_until_running(self._endpoint, waited_for, self._deadline_seconds, self._say)

    def _submit_or_undo(self, edit: Edit, waited_for: Sequence[str], undo: Edit) -> None:
        try:
            self._submit(edit, waited_for)
        except DataError:
            self._submit(undo)
            raise


def _names(served: Mapping[int, Held]) -> set[str]:
    return {held.application for held in served.values()}


def _number(arguments: Mapping[str, Any], held: Held) -> int:
    """An expert's number in its own run, from the arguments of its application."""
    return int(arguments["expert"] if held.number is None else held.number)


def _models(document: Document, served: Mapping[int, Held]) -> dict[Held, Location]:
    """The folder from which the application of every expert loaded its model."""
    arguments = {held: application(document, held.application)["args"] for held in served.values()}
    return {
        held: ServedRun.expert_folder(Location.parse(given["run"]), _number(given, held), given.get("folder"))
        for held, given in arguments.items()
    }


def _require_model(run: str, expert: int, folder: str | None) -> None:
    """Check what an application would load, before it is started: on the cluster that takes half a minute.

    Raises:
        UsageError: The run has no such expert.
        DataError: The model is missing or incomplete.
    """
    place = Location.parse(run)
    try:
        if not place.exists():
            return  # only the nodes of the cluster have this path
    except OSError:
        return  # or the permission to read it
    model = ServedRun.expert_folder(place, expert, folder)
    if problem := find_problem(model):
        raise DataError(f"{problem}: nothing is changed")


def _require_known(grown: ServedRun, experts: Sequence[int]) -> None:
    if unknown := [expert for expert in experts if expert not in grown.experts]:
        raise UsageError(f"{grown.run}: has no {_named(unknown)}: its experts are 0 to {grown.n - 1}")


def _require_all(grown: ServedRun, available: Collection[int]) -> None:
    missing = sorted(set(grown.experts) - set(available))
    if missing:
        raise UsageError(
            f"{grown.run}: {_named(missing)} would be missing, because no live application serves a model of this run "
            f"for it: name all of them, `mode-ray serve add {' '.join(map(str, missing))} … --run …`"
        )


def _named(experts: Sequence[int]) -> str:
    return f"expert{'s' if len(experts) > 1 else ''} {', '.join(map(str, experts))}"


def _applications(names: Collection[str]) -> str:
    return f"application{'s' if len(names) > 1 else ''} {', '.join(sorted(names))}"


def submit(endpoint: ServeEndpoint, document: Document) -> None:
    """Submit a list.

    Raises:
        DataError: Ray Serve refuses it.
    """
    try:
        endpoint.deploy_applications(document)
    except RuntimeError as error:
        raise DataError(f"Ray Serve refuses the applications: {' '.join(str(error).split())}") from None


def wait_until_running(
    endpoint: ServeEndpoint, names: Sequence[str], deadline_seconds: float, say: Callable[[str], None]
) -> None:
    """Return when all named applications run.

    Args:
        endpoint: The cluster.
        names: Names of the applications.
        deadline_seconds: How long that may take.
        say: Prints why an application waits, whenever Ray Serve gives a new reason.

    Raises:
        DataError: An application failed, or the deadline passed.
    """
    deadline = time.monotonic() + deadline_seconds
    said: dict[str, str] = {}
    while True:
        live = endpoint.get_serve_details()["applications"]
        waiting = [name for name in names if live.get(name, {}).get("status") != "RUNNING"]
        if not waiting:
            return
        for name in waiting:
            entry = live.get(name, {})
            if entry.get("status") == "DEPLOY_FAILED":
                raise DataError(f"application {name} does not start: {_failure(entry)}")
            reason = _reason([message for message in _messages(entry) if not _is_only_slow(message)])
            if reason and reason != said.get(name):
                said[name] = reason
                say(f"application {name} waits: {reason}")
        if time.monotonic() > deadline:
            reasons = "".join(f"; {name} waits: {said[name]}" for name in waiting if name in said)
            raise DataError(f"applications {waiting} did not run within {deadline_seconds:.0f} s{reasons}")
        time.sleep(_POLL_SECONDS)


def _messages(entry: Mapping[str, Any]) -> list[str]:
    """The messages of an application's deployments."""
    return [str(deployment.get("message", "")) for deployment in entry.get("deployments", {}).values()]


def _failure(entry: Mapping[str, Any]) -> str:
    """The error in an application's status."""
    return _reason([str(entry.get("message", "")), *_messages(entry)]) or "no reason given"


def _is_only_slow(message: str) -> bool:
    """Whether Ray Serve says that a start takes long, which needs nobody's help.

    It says so after 30 seconds, also if the model is being loaded, or the resources are there and Ray is busy.
    """
    if "have taken more than" not in message:
        return False
    found = re.search(r"required for each replica: (\{.*?\}), total resources available: (\{.*?\})\.", message)
    if found is None:
        return "to initialize" in message
    needed, there = (json.loads(amounts) for amounts in found.groups())
    return all(float(there.get(name, 0.0)) >= float(amount) for name, amount in needed.items())


def _reason(messages: Sequence[str]) -> str:
    """What messages of Ray Serve say, in one line: of stack traces the error at their end only."""
    lines = [line.strip() for message in messages for line in message.splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*: ", line)]
    return errors[-1] if errors else " ".join(" ".join(lines).split())
