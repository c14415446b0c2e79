"""Experts of a live cluster: added, removed and replaced one by one, while the others and the router stay up.

Serve deletes applications that a submitted list lacks. So every step reads the live list, edits it, and submits the
whole of it again. A new expert application is up before the router is told of it, and one that goes is no longer asked
before it is deleted. A replaced expert gets an application of its own name: the router changes from one to the other
at once, so that no answer mixes the image features of one model with the text features of another.
"""

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from mode_ray.errors import DataError, UsageError
from mode_ray.serve.ray.application_list import (
    Document,
    application,
    drain_seconds,
    find_router,
    live_document,
    new_expert,
    other_model,
    served_experts,
    served_run,
    with_applications,
    with_served,
    without_applications,
)
from mode_ray.serve.service.served_run import ServedRun, held_experts
from mode_ray.stages.access_token import token_headers
from mode_ray.storage import Location

_POLL_SECONDS = 0.5

Edit = Callable[[Document], Document]


class ServeEndpoint(Protocol):
    """Ray's REST interface to Serve, as ray.dashboard's ServeSubmissionClient speaks it."""

    def get_serve_details(self) -> Document:
        """Everything that is live."""

    def deploy_applications(self, config: Document) -> None:
        """Submit a list; what it lacks is deleted."""


class LiveServing:
    """The ensemble of one router application on a live cluster.

    Args:
        endpoint: The cluster.
        say: Takes one line on every step.
        router: Name of the router application, where there are several.
        deadline_seconds: How long an application may take until it runs.
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
        """Serve further experts, with the settings of those that are there; the router learns of all at once.

        Args:
            experts: Their numbers, in the run that is served or in the grown one.
            folder: The model of the only one, where it is not the run's.
            grown: A run that took over experts which are live, to be served from now on: its clustering weighs. Live
                experts that are not its own end.

        Raises:
            UsageError: An expert is served already, nothing is served, or the grown run has experts that are neither
                named nor live.
            DataError: One does not start, or a router cannot read the grown run; everything is as before.
        """
        document = self._document()
        live = served_experts(document, self._router)
        kept = live if grown is None else held_experts(grown, _models(document, live))
        for expert in experts:
            if expert in kept:
                raise UsageError(f"expert {expert} is served already: mode-ray serve replace {expert} exchanges it")
        if grown is not None:
            _require_all(grown, {*kept, *experts})
        before = served_run(document, self._router)
        run = before if grown is None else grown.run.uri
        started: dict[int, str] = {}
        with_new = document
        for expert in experts:
            new = new_expert(with_new, self._router, expert, run, folder)
            with_new = with_applications(with_new, [new])
            started[expert] = new["name"]
        self._start(with_new["applications"][len(document["applications"]) :])

        def edit(now: Document) -> Document:
            others = kept if grown is not None else served_experts(now, self._router)
            return with_served(now, self._router, {**others, **started}, None if grown is None else run)

        def undo(now: Document) -> Document:
            return without_applications(with_served(now, self._router, live, before), started.values())

        try:
            self._submit(edit, [self._router])
        except DataError:
            self._submit(undo)
            raise
        if unused := set(live.values()) - set(kept.values()):
            self._end(document, unused)
        over = "" if grown is None else f", which is that of {run} from now on"
        self._say(f"{_named(experts)} {'is' if len(experts) == 1 else 'are'} in the ensemble{over}")

    def remove(self, expert: int) -> None:
        """Serve an expert no longer.

        Raises:
            UsageError: It is not served, or the only one.
        """
        document = self._document()
        name = self._served_name(document, expert)
        if len(served_experts(document, self._router)) == 1:
            raise UsageError(f"expert {expert} is the only one: the ensemble needs one at least")

        def edit(now: Document) -> Document:
            served = served_experts(now, self._router)
            return with_served(now, self._router, {id_: held for id_, held in served.items() if id_ != expert})

        self._submit(edit, [self._router])
        self._end(document, [name])
        self._say(f"expert {expert} is out of the ensemble")

    def replace(self, expert: int, folder: str | None = None) -> None:
        """Exchange the model of a served expert: the new one is loaded before the old one goes.

        Args:
            expert: Its id.
            folder: The new model; by default the folder it was loaded from, read again.

        Raises:
            UsageError: It is not served.
            DataError: The new one does not start; everything is as before.
        """
        document = self._document()
        old_name = self._served_name(document, expert)
        folder = folder or application(document, old_name)["args"].get("folder")
        new = other_model(document, self._router, expert, folder)
        self._start([new])

        def edit(now: Document) -> Document:
            return with_served(now, self._router, served_experts(now, self._router) | {expert: new["name"]})

        self._submit(edit, [self._router])
        self._end(document, [old_name])
        self._say(f"expert {expert} is replaced")

    def _served_name(self, document: Document, expert: int) -> str:
        served = served_experts(document, self._router)
        if expert not in served:
            raise UsageError(f"expert {expert} is not served: the live experts are {sorted(served)}")
        return served[expert]

    def _start(self, new: Sequence[Document]) -> None:
        names = [entry["name"] for entry in new]
        self._say(f"starting {_applications(names)}")
        try:
            self._submit(lambda now: with_applications(now, new), names)
        except DataError:
            self._submit(lambda now: without_applications(now, names))
            raise

    def _end(self, document: Document, names: Collection[str]) -> None:
        """Delete expert applications once the requests that may still ask them have ended."""
        seconds = drain_seconds(find_router(document, self._router)["args"].get("settings", {}))
        self._say(f"ending {_applications(names)} in {seconds:g} s, when no request can need it any more")
        time.sleep(seconds)
        self._submit(lambda now: without_applications(now, names))

    def _document(self) -> Document:
        return live_document(self._endpoint.get_serve_details())

    def _submit(self, edit: Edit, waited_for: Sequence[str] = ()) -> None:
        submit(self._endpoint, edit(self._document()))
        wait_until_running(self._endpoint, waited_for, self._deadline_seconds, self._say)


def _models(document: Document, served: Mapping[int, str]) -> dict[str, Location]:
    """The folder that every expert application of a router loaded its model from."""
    arguments = {name: application(document, name)["args"] for name in served.values()}
    return {
        name: ServedRun.expert_folder(Location.parse(given["run"]), given["expert"], given.get("folder"))
        for name, given in arguments.items()
    }


def _require_all(grown: ServedRun, there: Collection[int]) -> None:
    lacking = sorted(set(grown.experts) - set(there))
    if lacking:
        raise UsageError(
            f"{grown.run}: {_named(lacking)} would be missing, as no live application holds what this run took over "
            f"or trained there: name them as well, `mode-ray serve add {' '.join(map(str, lacking))} … --run …`"
        )


def _named(experts: Sequence[int]) -> str:
    return f"expert{'s' if len(experts) > 1 else ''} {', '.join(map(str, experts))}"


def _applications(names: Collection[str]) -> str:
    return f"application{'s' if len(names) > 1 else ''} {', '.join(sorted(names))}"


def connect(address: str) -> ServeEndpoint:
    """The cluster behind the dashboard's address, `http://HOST:8265`; the token of a local cluster is found by itself.

    Raises:
        UsageError: No dashboard answers there, or it refuses the token.
    """
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
    from ray.exceptions import AuthenticationError

    try:
        endpoint: ServeEndpoint = ServeSubmissionClient(address, headers=token_headers(address, os.environ))
    except AuthenticationError:
        raise UsageError(
            f"{address}: the cluster refuses access without its token: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to the file with the token it was started with"
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"no Ray dashboard at {address} ({reason}): give --address or set RAY_DASHBOARD_ADDRESS"
        ) from None
    return endpoint


def submit(endpoint: ServeEndpoint, document: Document) -> None:
    """Submit a list.

    Raises:
        DataError: Ray Serve does not take it.
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
        names: Of the applications.
        deadline_seconds: How long that may take.
        say: Takes a line on what is waited for, when Ray Serve gives a reason and whenever that changes.

    Raises:
        DataError: One has failed, or time is up.
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
                raise DataError(f"application {name} does not start: {_reason(entry)}")
            reason = _waits_for(entry)
            if reason and reason != said.get(name):
                said[name] = reason
                say(f"application {name} waits: {reason}")
        if time.monotonic() > deadline:
            reasons = "".join(f"; {name} waits: {said[name]}" for name in waiting if name in said)
            raise DataError(f"applications {waiting} did not run within {deadline_seconds:.0f} s{reasons}")
        time.sleep(_POLL_SECONDS)


def _waits_for(entry: Mapping[str, Any]) -> str:
    """What the deployments of an application that does not run yet say of themselves, in one line."""
    messages = [str(deployment.get("message", "")) for deployment in entry.get("deployments", {}).values()]
    return " ".join(" ".join(messages).split())


def _reason(entry: Mapping[str, Any]) -> str:
    """The most telling line of an application's status: the error itself ends the stack trace."""
    messages = [str(entry.get("message", ""))]
    messages += [str(deployment.get("message", "")) for deployment in entry.get("deployments", {}).values()]
    lines = [line.strip() for message in messages for line in message.splitlines() if "Error" in line]
    return lines[-1] if lines else " ".join(messages[0].split()) or "no reason given"
