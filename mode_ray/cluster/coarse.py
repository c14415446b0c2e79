"""Coarse grouping of the fine centers into experts (paper section 3.2, step 2): k-means with capacities."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.sparse

from mode_ray.cluster.search.nearest import Float32Array, Int32Array
from mode_ray.config.cluster import CoarseConfig

MAX_LINEAR_PROGRAM_VARIABLES = 100_000
_REFINED_RESTARTS = 2
_MAX_LINEAR_PROGRAMS = 8
_GREEDY_ITERATIONS = 10
_SWAP_CENTERS = 4096
_ROUNDING = 1e-9

Float64Array = npt.NDArray[np.float64]
Groups = npt.NDArray[np.intp]


@dataclass(frozen=True)
class CoarseMap:
    """A partition of the fine centers. Groups are numbered by descending load, ties by their lowest center.

    Attributes:
        group_m: int32 [m], group of each center.
        load_n: float64 [n], share of the rows in each group; sums to 1.
        slack_used: No load exceeds (1 + slack_used)/n. This is the configured slack, or more if a center is heavier
            than the capacity or the centers cannot be packed into it.
        cost: Mass-weighted mean squared distance of the centers to their group's centroid.
    """

    group_m: Int32Array
    load_n: Float64Array
    slack_used: float
    cost: float


def group_centers(
    centers_md: Float32Array, mass_m: npt.NDArray[Any], n: int, config: CoarseConfig, seed: int
) -> CoarseMap:
    """Group m centers into n experts of at most (1 + slack)/n of the rows each.

    Several greedy k-means runs give starting points. The best ones continue with the exact assignment step, the linear
    relaxation of the transport problem. Its few split centers are rounded to the nearest group with room.

    Args:
        centers_md: float32 [m, d].
        mass_m: Rows of each center, [m]; if all are 0, all centers have the same weight.
        n: Number of groups, 1 to m.
        config: Slack, restarts, iterations.
        seed: The same seed gives the same map.

    Raises:
        ValueError: n is not in 1..m, or the masses do not fit the centers.
    """
    m = len(centers_md)
    if not 1 <= n <= m:
        raise ValueError(f"{m} centers cannot make n={n} groups")
    weights_m = np.asarray(mass_m, np.float64)
    if weights_m.shape != (m,) or not np.isfinite(weights_m).all() or (weights_m < 0).any():
        raise ValueError(f"mass must be {m} finite numbers of at least 0, one per center")
    weights_m = weights_m / weights_m.sum() if weights_m.any() else np.full(m, 1.0 / m)
    problem = _Problem(np.asarray(centers_md, np.float64), weights_m, n, (1.0 + config.slack) / n)
    if n in (1, m):
        return problem.canonical(np.arange(m) % n, config.slack)
    rng = np.random.default_rng(seed)
    greedy_iterations = min(config.iterations, _GREEDY_ITERATIONS)
    starts = [problem.lloyd(problem.seeds(rng), greedy_iterations, exact=False) for _ in range(config.restarts)]
    starts.sort(key=problem.rank)
    if m * n > MAX_LINEAR_PROGRAM_VARIABLES:
        return problem.canonical(starts[0], config.slack)
    refined = [
        problem.lloyd(problem.centroids(start), min(config.iterations, _MAX_LINEAR_PROGRAMS), exact=True)
        for start in starts[:_REFINED_RESTARTS]
    ]
    return problem.canonical(min([*refined, *starts], key=problem.rank), config.slack)


@dataclass(frozen=True)
class _Problem:
    centers_md: Float64Array
    weights_m: Float64Array
    n: int
    capacity: float

    def seeds(self, rng: np.random.Generator) -> Float64Array:
        """Mass-weighted k-means++ centroids [n, d]."""
        chosen = [int(rng.choice(len(self.weights_m), p=self.weights_m))]
        distance_m = _squared_distances(self.centers_md, self.centers_md[chosen])[:, 0]
        for _ in range(self.n - 1):
            chance_m = self.weights_m * distance_m
            if not chance_m.any():
                chance_m = np.ones(len(chance_m))
            chance_m[chosen] = 0.0
            chosen.append(int(rng.choice(len(chance_m), p=chance_m / chance_m.sum())))
            distance_m = np.minimum(
                distance_m, _squared_distances(self.centers_md, self.centers_md[chosen[-1:]])[:, 0]
            )
        return self.centers_md[chosen]

    def lloyd(self, centroids_nd: Float64Array, iterations: int, exact: bool) -> Groups:
        """Alternate capacitated assignment and centroids until nothing changes, then repair overloads."""
        group_m = np.zeros(len(self.weights_m), np.intp)
        for _ in range(iterations):
            distance_mn = _squared_distances(self.centers_md, centroids_nd)
            assigned_m = self._transport(distance_mn) if exact else self._greedy(distance_mn)
            assigned_m = self._filled(self._improved(assigned_m, distance_mn), distance_mn)
            unmoved = np.array_equal(assigned_m, group_m)
            group_m, centroids_nd = assigned_m, self.centroids(assigned_m)
            if unmoved:
                break
        distance_mn = _squared_distances(self.centers_md, centroids_nd)
        return self._filled(self._repaired(group_m, distance_mn), distance_mn)

    def rank(self, group_m: Groups) -> tuple[float, float]:
        """Sort key of partitions: overload first, then cost."""
        overload = max(0.0, float(self._loads(group_m).max()) - self.capacity)
        return (round(overload, 9), self.cost(group_m))

    def cost(self, group_m: Groups) -> float:
        residual_md = self.centers_md - self.centroids(group_m)[group_m]
        return float((self.weights_m * np.square(residual_md).sum(axis=1)).sum())

    def centroids(self, group_m: Groups) -> Float64Array:
        """Mass-weighted centroids [n, d]; the plain mean for groups without mass."""
        member_nm = scipy.sparse.csr_array(
            (np.ones(len(group_m)), (group_m, np.arange(len(group_m)))), shape=(self.n, len(group_m))
        )
        load_n = self._loads(group_m)
        sums_nd = member_nm @ (self.centers_md * self.weights_m[:, None])
        counts_n = np.bincount(group_m, minlength=self.n)
        plain_nd = (member_nm @ self.centers_md) / np.maximum(counts_n, 1)[:, None]
        heavy_n1 = (load_n > 0.0)[:, None]
        return np.where(heavy_n1, sums_nd / np.where(heavy_n1, load_n[:, None], 1.0), plain_nd)

    def canonical(self, group_m: Groups, slack: float) -> CoarseMap:
        load_n = self._loads(group_m)
        lowest_n = np.array([np.flatnonzero(group_m == group)[0] for group in range(self.n)])
        order = np.lexsort((lowest_n, -np.round(load_n, 12)))
        number_n = np.empty(self.n, np.int32)
        number_n[order] = np.arange(self.n, dtype=np.int32)
        slack_used = max(slack, self.n * float(load_n.max()) - 1.0)
        if slack_used <= slack + self.n * _ROUNDING:
            slack_used = slack
        return CoarseMap(number_n[group_m], load_n[order], slack_used, self.cost(group_m))

    def _loads(self, group_m: Groups) -> Float64Array:
        return np.bincount(group_m, weights=self.weights_m, minlength=self.n).astype(np.float64)

    def _place(self, group_m: Groups, waiting: npt.NDArray[np.intp], distance_mn: Float64Array) -> Groups:
        """Put waiting centers, in order, into the nearest group with room, else into the group with the most room."""
        placed_m = np.ones(len(group_m), bool)
        placed_m[waiting] = False
        load_n = np.bincount(group_m[placed_m], self.weights_m[placed_m], self.n).astype(np.float64)
        nearest_m = distance_mn.argmin(axis=1)
        for center in waiting:
            nearest = nearest_m[center]
            if load_n[nearest] + self.weights_m[center] <= self.capacity + _ROUNDING:
                group_m[center] = nearest
                load_n[nearest] += self.weights_m[center]
                continue
            room_n = load_n + self.weights_m[center] <= self.capacity + _ROUNDING
            group = np.where(room_n, distance_mn[center], np.inf).argmin() if room_n.any() else load_n.argmin()
            group_m[center] = group
            load_n[group] += self.weights_m[center]
        return group_m

    def _greedy(self, distance_mn: Float64Array) -> Groups:
        """Assign the centers in order of what their second choice would cost, the highest first."""
        best_two_m2 = np.partition(distance_mn, 1, axis=1)[:, :2]
        regret_m = self.weights_m * (best_two_m2[:, 1] - best_two_m2[:, 0])
        order = np.argsort(-regret_m, kind="stable")
        return self._place(np.zeros(len(order), np.intp), order, distance_mn)

    def _transport(self, distance_mn: Float64Array) -> Groups:
        """Solve the linear program over each center's share in each group; round the split centers (fewer than n)."""
        heavy = np.flatnonzero(self.weights_m > 0.0)
        weights_h, distance_hn = self.weights_m[heavy], distance_mn[heavy]
        capacity = max(self.capacity, float(weights_h.max()))
        # Masses in units of their mean keep the coefficients near 1.
        scaled_h = weights_h * len(heavy)
        each = scipy.sparse.kron(scipy.sparse.eye_array(len(heavy)), np.ones((1, self.n)), format="csr")
        load = scipy.sparse.kron(scaled_h[None, :], scipy.sparse.eye_array(self.n), format="csr")
        solution = scipy.optimize.linprog(  # type: ignore[call-overload]  # the stubs know no sparse arrays
            (scaled_h[:, None] * distance_hn).ravel(),
            A_ub=load,
            b_ub=np.full(self.n, capacity * len(heavy)),
            A_eq=each,
            b_eq=np.ones(len(heavy)),
            bounds=(0.0, 1.0),
            method="highs-ds",
        )
        if solution.x is None:
            return self._greedy(distance_mn)
        share_hn = solution.x.reshape(len(heavy), self.n)
        group_m = distance_mn.argmin(axis=1)
        group_m[heavy] = share_hn.argmax(axis=1)
        split = heavy[share_hn.max(axis=1) < 1.0 - 1e-6]
        return self._place(group_m, split[np.argsort(-self.weights_m[split], kind="stable")], distance_mn)

    def _improved(self, group_m: Groups, distance_mn: Float64Array) -> Groups:
        """Move centers to their nearest groups, or swap them with a center there, if that lowers the cost."""
        group_m = group_m.copy()
        load_n = self._loads(group_m)
        own_m = np.take_along_axis(distance_mn, group_m[:, None], axis=1)[:, 0]
        gain_m = self.weights_m * (own_m - distance_mn.min(axis=1))
        for center in np.argsort(-gain_m, kind="stable")[: np.count_nonzero(gain_m > 0.0)]:
            self._improve_one(int(center), load_n, group_m, distance_mn)
        return group_m

    def _improve_one(self, center: int, load_n: Float64Array, group_m: Groups, distance_mn: Float64Array) -> None:
        here, there = int(group_m[center]), int(distance_mn[center].argmin())
        weight = self.weights_m[center]
        gain = weight * (distance_mn[center, here] - distance_mn[center, there])
        others = np.flatnonzero(group_m == there)
        # The last candidate is a move without a swap.
        weight_o = np.append(self.weights_m[others], 0.0)
        loss_o = np.append(self.weights_m[others] * (distance_mn[others, here] - distance_mn[others, there]), 0.0)
        limit = self.capacity + _ROUNDING
        fits_o = (load_n[there] + weight - weight_o <= limit) & (load_n[here] - weight + weight_o <= limit)
        gain_o = np.where(fits_o, gain - loss_o, -np.inf)
        best = int(gain_o.argmax())
        if gain_o[best] <= _ROUNDING * gain:
            return
        group_m[center] = there
        if best < len(others):
            group_m[others[best]] = here
        load_n[there] += weight - weight_o[best]
        load_n[here] -= weight - weight_o[best]

    def _repaired(self, group_m: Groups, distance_mn: Float64Array) -> Groups:
        """Remove overload by the moves and swaps with the lowest cost per removed load."""
        group_m = group_m.copy()
        for _ in range(len(group_m)):
            load_n = self._loads(group_m)
            full = int(load_n.argmax())
            excess = load_n[full] - self.capacity
            if excess <= _ROUNDING or not self._relieve(full, excess, load_n, group_m, distance_mn):
                break
        return group_m

    def _relieve(
        self, full: int, excess: float, load_n: Float64Array, group_m: Groups, distance_mn: Float64Array
    ) -> bool:
        members = np.flatnonzero(group_m == full)[:_SWAP_CENTERS]
        others = np.flatnonzero(group_m != full)[:_SWAP_CENTERS]
        weight_i = self.weights_m[members]
        leaving_in = weight_i[:, None] * (distance_mn[members] - distance_mn[members, full][:, None])
        # Columns: a move into each group, then a swap with each center of another group.
        target = np.concatenate([np.arange(self.n), group_m[others]])
        weight_back = np.concatenate([np.zeros(self.n), self.weights_m[others]])
        returning = self.weights_m[others] * (distance_mn[others, full] - distance_mn[others, group_m[others]])
        cost_it = leaving_in[:, target] + np.concatenate([np.zeros(self.n), returning])
        relief_it = weight_i[:, None] - weight_back
        # If nothing fits, the receiving group may exceed the capacity but must stay below the load of the full one.
        allowed_it = (relief_it > _ROUNDING) & (load_n[target] + relief_it <= self.capacity + _ROUNDING)
        allowed_it[:, full] = False
        if not allowed_it.any():
            allowed_it = (relief_it > _ROUNDING) & (load_n[target] + relief_it < load_n[full] - _ROUNDING)
            allowed_it[:, full] = False
        if not allowed_it.any():
            return False
        # Prefer steps of at least half the excess: otherwise tiny swaps would be the cheapest.
        large_it = allowed_it & (relief_it >= excess / 2.0)
        if large_it.any():
            allowed_it = large_it
        price_it = np.where(allowed_it, cost_it / np.clip(relief_it, _ROUNDING, excess), np.inf)
        member, column = np.unravel_index(int(price_it.argmin()), price_it.shape)
        group_m[members[member]] = target[column]
        if column >= self.n:
            group_m[others[column - self.n]] = full
        return True

    def _filled(self, group_m: Groups, distance_mn: Float64Array) -> Groups:
        """Give each empty group the costliest center of a group with more than one."""
        group_m = group_m.copy()
        for empty in np.flatnonzero(np.bincount(group_m, minlength=self.n) == 0):
            count_n = np.bincount(group_m, minlength=self.n)
            own_m = self.weights_m * np.take_along_axis(distance_mn, group_m[:, None], axis=1)[:, 0]
            group_m[int(np.where(count_n[group_m] > 1, own_m, -1.0).argmax())] = empty
        return group_m


def _squared_distances(left_md: Float64Array, right_nd: Float64Array) -> Float64Array:
    squared_mn = np.square(left_md).sum(axis=1)[:, None] - 2.0 * left_md @ right_nd.T + np.square(right_nd).sum(axis=1)
    return np.asarray(np.maximum(squared_mn, 0.0), np.float64)
