"""Whom the service tells what it does; figures about requests, never their content."""

from typing import Protocol


class Observer(Protocol):
    """Counts and times."""

    def count_request(self, route: str, status: int) -> None:
        """One request was answered."""

    def observe_step(self, step: str, seconds: float) -> None:
        """One step of a request (decode, route, ensemble) took so long."""

    def observe_expert(self, expert: int, seconds: float) -> None:
        """An expert answered after so long."""

    def observe_batch(self, expert: int, size: int) -> None:
        """So many images went through an expert at once."""

    def observe_experts(self, count: int) -> None:
        """So many experts were asked for one request."""

    def count_degraded(self) -> None:
        """One answer lacks an expert."""

    def count_cache(self, hit: bool) -> None:
        """One lookup of a task."""

    def set_queue(self, length: int) -> None:
        """How many requests are in the service now."""

    def exposition(self) -> tuple[bytes, str] | None:
        """A page for Prometheus and its content type; None where there is none."""


class Unobserved:
    """Tells nobody."""

    def count_request(self, route: str, status: int) -> None:
        """See `Observer`."""

    def observe_step(self, step: str, seconds: float) -> None:
        """See `Observer`."""

    def observe_expert(self, expert: int, seconds: float) -> None:
        """See `Observer`."""

    def observe_batch(self, expert: int, size: int) -> None:
        """See `Observer`."""

    def observe_experts(self, count: int) -> None:
        """See `Observer`."""

    def count_degraded(self) -> None:
        """See `Observer`."""

    def count_cache(self, hit: bool) -> None:
        """See `Observer`."""

    def set_queue(self, length: int) -> None:
        """See `Observer`."""

    def exposition(self) -> tuple[bytes, str] | None:
        """See `Observer`."""
        return None
