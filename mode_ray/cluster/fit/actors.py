"""The rows of a fit, dealt to Ray actors; see `SampleRows`."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from mode_ray.cluster.fit.sample import SamplePart, deal_sample, read_sample
from mode_ray.cluster.fit.sample_rows import CandidateSearch, Hashes, LocalRows
from mode_ray.cluster.fit.sums import Float64Array, PartialSums
from mode_ray.cluster.search.nearest import Float32Array
from mode_ray.config.cluster import ClusterPlacement
from mode_ray.storage import Location

# A lost actor comes back, reads its part again, and answers the request anew: requests depend on nothing before them.
_MAX_RESTARTS = 16


class _RowsActor:
    """Holds a part of the sample.

    It is read at the first request: what fails while an actor is made reaches nobody as itself.
    """

    def __init__(self, embeddings: Location, parts: Sequence[SamplePart], seed: int, threads: int) -> None:
        self._embeddings, self._parts, self._seed, self._threads = embeddings, parts, seed, threads

    @cached_property
    def _rows(self) -> LocalRows:
        return LocalRows(read_sample(self._embeddings, self._parts, self._seed), self._threads)

    def ask(self, what: str, *arguments: object) -> Any:  # noqa: ANN401 - each request's own
        """Answer one of the requests of `SampleRows`."""
        return getattr(self._rows, what)(*arguments)


class ActorRows:
    """Rows of a sample over Ray actors; only centers, prices and sums travel.

    Args:
        embeddings: The embedding shards.
        parts: The sample.
        seed: With which it was drawn.
        placement: Number and resources of the actors.
    """

    def __init__(
        self, embeddings: Location, parts: Sequence[SamplePart], seed: int, placement: ClusterPlacement
    ) -> None:
        dealt = [own for own in deal_sample(parts, placement.workers) if own]
        actor: Any = ray.remote(
            num_cpus=placement.cpus, max_restarts=_MAX_RESTARTS, max_task_retries=_MAX_RESTARTS
        )(_RowsActor)  # fmt: skip
        self._actors: list[Any] = [actor.remote(embeddings, own, seed, placement.threads) for own in dealt]
        counts = [sum(part.end - part.begin for part in own) for own in dealt]
        self._ends = np.cumsum(counts)
        self._search: tuple[int, Any] | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._ends[-1])

    def hashes(self) -> Hashes:
        """See `SampleRows`."""
        return np.concatenate(ray.get(self._ask("hashes")))

    def take(self, positions: npt.NDArray[np.integer]) -> Float32Array:
        """See `SampleRows`."""
        cuts = np.searchsorted(positions, self._ends)
        begins = np.concatenate([[0], self._ends[:-1]])
        own = [part - begin for part, begin in zip(np.split(positions, cuts[:-1]), begins, strict=True)]
        return np.concatenate(
            ray.get([actor.ask.remote("take", some) for actor, some in zip(self._actors, own, strict=True)])
        )

    def nearest_sums(self, centers_md: Float32Array) -> PartialSums:
        """See `SampleRows`."""
        return self._merged(PartialSums.merge, "nearest_sums", ray.put(centers_md))

    def priced_sums(self, search: CandidateSearch, prices_m: Float64Array) -> PartialSums:
        """See `SampleRows`."""
        return self._merged(PartialSums.merge, "priced_sums", self._stored(search), prices_m)

    def sizes(self, search: CandidateSearch, prices_m: Float64Array) -> Float64Array:
        """See `SampleRows`."""
        sizes_am: list[Float64Array] = ray.get(self._ask("sizes", self._stored(search), prices_m))
        return np.asarray(np.sum(sizes_am, axis=0))

    def distance_histogram(self, centers_md: Float32Array) -> npt.NDArray[np.int64]:
        """See `SampleRows`."""
        return np.asarray(np.sum(ray.get(self._ask("distance_histogram", ray.put(centers_md))), axis=0))

    def _ask(self, what: str, *arguments: object) -> list[Any]:
        return [actor.ask.remote(what, *arguments) for actor in self._actors]

    def _merged(self, merge: Callable[[Any], PartialSums], what: str, *arguments: object) -> PartialSums:
        # One after the other: the sums of all actors at once would be large where m is.
        return merge(ray.get(answer) for answer in self._ask(what, *arguments))

    def _stored(self, search: CandidateSearch) -> Any:  # noqa: ANN401 - an ObjectRef
        if self._search is None or self._search[0] != search.number:
            self._search = (search.number, ray.put(search))
        return self._search[1]
