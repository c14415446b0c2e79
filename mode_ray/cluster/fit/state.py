"""The state of a fit on disk, from which an interrupted clustering resumes."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from mode_ray.cluster.clustering import Tensors
from mode_ray.cluster.fit.seeding import InitMethod
from mode_ray.errors import DataError
from mode_ray.run_directory import FIT_PROGRESS, FIT_STATE
from mode_ray.storage import Location


@dataclass(frozen=True)
class IterationReport:
    """The assignment of one Lloyd step, before the centers move.

    Attributes:
        iteration: From 1.
        inertia: Sum of unpriced squared distances of the rows to their centers; estimated in a step that reads only
            some of the rows.
        max_over_mean: Size of the largest cluster over the mean size.
        imbalance_factor: m * sum(n^2) / N^2.
        balance_score: At most 1 if both figures meet their targets.
        empty_clusters: Clusters without a row; each of them is then given half of a large one.
    """

    iteration: int
    inertia: float
    max_over_mean: float
    imbalance_factor: float
    balance_score: float
    empty_clusters: int


@dataclass(frozen=True, eq=False)
class FitState:
    """A fit between two iterations. With the rows and the config, it is all that is needed to resume.

    Attributes:
        centers_md: float32 [m, d].
        prices_m: float64 [m].
        history: One report per iteration so far.
        init: How the first centers were chosen.
        extended_from: Iterations after which a fit that missed its balance continued; None if it did not.
    """

    centers_md: npt.NDArray[np.float32]
    prices_m: npt.NDArray[np.float64]
    history: tuple[IterationReport, ...]
    init: InitMethod
    extended_from: int | None = None

    def most_iterations(self, iterations: int) -> int:
        """The bound of the fit: `iterations`, and as many again after `extended_from`."""
        return iterations if self.extended_from is None else self.extended_from + iterations


def write_fit_state(directory: Location, state: FitState) -> None:
    """Write a state, then its newest report with `extended_from` for progress displays, both atomically."""
    about = {"init": state.init, "history": json.dumps([asdict(report) for report in state.history])}
    if state.extended_from is not None:
        about["extended_from"] = str(state.extended_from)
    tensors: Tensors = {"centers_md": state.centers_md, "prices_m": state.prices_m}
    (directory / FIT_STATE).write_bytes(safetensors.numpy.save(tensors, about))
    newest = {**asdict(state.history[-1]), "extended_from": state.extended_from}
    (directory / FIT_PROGRESS).write_text(json.dumps(newest))


def read_fit_state(directory: Location) -> FitState | None:
    """The state of an interrupted fit, or None.

    Raises:
        DataError: The file is damaged.
    """
    file = directory / FIT_STATE
    if not file.exists():
        return None
    data = file.read_bytes()
    try:
        tensors = safetensors.numpy.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        history = tuple(IterationReport(**report) for report in json.loads(header["history"]))
        return FitState(
            tensors["centers_md"].astype(np.float32),
            tensors["prices_m"].astype(np.float64),
            history,
            header["init"],
            int(header["extended_from"]) if "extended_from" in header else None,
        )
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: damaged ({error}); remove it to start the fit again") from None


def delete_fit_state(directory: Location) -> None:
    """Delete the state and the report."""
    (directory / FIT_STATE).delete()
    (directory / FIT_PROGRESS).delete()
