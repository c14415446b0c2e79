"""`SampleRows` distributed over Ray actors."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from mode_ray.cluster.fit.device_rows import sample_rows
from mode_ray.cluster.fit.sample import SamplePart, distribute_sample, read_sample
from mode_ray.cluster.fit.sample_rows import CandidateSearch, Hashes, SampleRows
from mode_ray.cluster.fit.sums import Float64Array, PartialSums
from mode_ray.cluster.search.nearest import Float32Array
from mode_ray.config.cluster import ClusterPlacement
from mode_ray.storage import Location

# A restarted actor reads its part again and repeats the call: calls do not depend on earlier ones.
_MAX_RESTARTS = 16


class _RowsActor:
    """Holds one part of the sample; each method is that of `SampleRows`.

    The part is read by the first call, because Ray does not pass on the type of an error in an actor's constructor.
    """

    def __init__(
        self, embeddings: Location, parts: Sequence[SamplePart], seed: int, placement: ClusterPlacement
    ) -> None:
        self._embeddings, self._parts, self._seed, self._placement = embeddings, parts, seed, placement

    @cached_property
    def _rows(self) -> SampleRows:
        return sample_rows(read_sample(self._embeddings, self._parts, self._seed), self._placement)

    def hashes(self) -> Hashes:
        return self._rows.hashes()

    def take(self, positions: npt.NDArray[np.integer]) -> Float32Array:
        return self._rows.take(positions)

    def nearest_sums(self, centers_md: Float32Array, every: int) -> PartialSums:
        return self._rows.nearest_sums(centers_md, every)

    def priced_sums(self, search: CandidateSearch, prices_m: Float64Array) -> PartialSums:
        return self._rows.priced_sums(search, prices_m)

    def sizes(self, search: CandidateSearch, prices_m: Float64Array) -> Float64Array:
        return self._rows.sizes(search, prices_m)

    def distance_histogram(self, centers_md: Float32Array) -> npt.NDArray[np.int64]:
        return self._rows.distance_histogram(centers_md)


class ActorRows:
    """A sample held by Ray actors; only centers, prices and sums cross the network. See `SampleRows`.

    Args:
        embeddings: The embedding shards.
        parts: The sample.
        seed: Seed that the sample was drawn with.
        placement: Number and resources of the actors.
    """

    def __init__(
        self, embeddings: Location, parts: Sequence[SamplePart], seed: int, placement: ClusterPlacement
    ) -> None:
        shares = [own for own in distribute_sample(parts, placement.workers) if own]
        actor: Any = ray.remote(
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            max_restarts=_MAX_RESTARTS,
            max_task_retries=_MAX_RESTARTS,
        )(_RowsActor)
        actor = actor.options(label_selector=placement.required_labels)
        self._actors: list[Any] = [actor.remote(embeddings, own, seed, placement) for own in shares]
        self._ends = np.cumsum([sum(part.end - part.begin for part in own) for own in shares])
        self._search: tuple[int, Any] | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._ends[-1])

    def hashes(self) -> Hashes:
        """See `SampleRows`."""
        return np.concatenate(ray.get([actor.hashes.remote() for actor in self._actors]))

    def take(self, positions: npt.NDArray[np.integer]) -> Float32Array:
        """See `SampleRows`."""
        cuts = np.searchsorted(positions, self._ends)
        begins = np.concatenate([[0], self._ends[:-1]])
        own = [part - begin for part, begin in zip(np.split(positions, cuts[:-1]), begins, strict=True)]
        return np.concatenate(
            ray.get([actor.take.remote(some) for actor, some in zip(self._actors, own, strict=True)])
        )

    def nearest_sums(self, centers_md: Float32Array, every: int = 1) -> PartialSums:
        """See `SampleRows`."""
        centers = ray.put(centers_md)
        return _merged([actor.nearest_sums.remote(centers, every) for actor in self._actors])

    def priced_sums(self, search: CandidateSearch, prices_m: Float64Array) -> PartialSums:
        """See `SampleRows`."""
        stored = self._stored(search)
        return _merged([actor.priced_sums.remote(stored, prices_m) for actor in self._actors])

    def sizes(self, search: CandidateSearch, prices_m: Float64Array) -> Float64Array:
        """See `SampleRows`."""
        stored = self._stored(search)
        return np.asarray(np.sum(ray.get([actor.sizes.remote(stored, prices_m) for actor in self._actors]), axis=0))

    def distance_histogram(self, centers_md: Float32Array) -> npt.NDArray[np.int64]:
        """See `SampleRows`."""
        centers = ray.put(centers_md)
        counts = ray.get([actor.distance_histogram.remote(centers) for actor in self._actors])
        return np.asarray(np.sum(counts, axis=0))

    def _stored(self, search: CandidateSearch) -> Any:  # noqa: ANN401 - an ObjectRef
        if self._search is None or self._search[0] != search.number:
            self._search = (search.number, ray.put(search))
        return self._search[1]


def _merged(answers: Iterable[Any]) -> PartialSums:
    # Fetched one at a time: the sums of all actors together are large for many centers.
    return PartialSums.merge(ray.get(answer) for answer in answers)
