"""The state of a fit on disk, from which an interrupted clustering resumes."""

import json
from dataclasses import asdict

import numpy as np
import safetensors
import safetensors.numpy

from mode_ray.cluster.clustering import Tensors
from mode_ray.cluster.fit.kmeans import FitState, IterationReport
from mode_ray.errors import DataError
from mode_ray.run_directory import FIT_PROGRESS, FIT_STATE
from mode_ray.storage import Location


def write_fit_state(directory: Location, state: FitState) -> None:
    """Write a state, then its newest report for progress displays, both atomically."""
    about = {"init": state.init, "history": json.dumps([asdict(report) for report in state.history])}
    tensors: Tensors = {"centers_md": state.centers_md, "prices_m": state.prices_m}
    (directory / FIT_STATE).write_bytes(safetensors.numpy.save(tensors, about))
    (directory / FIT_PROGRESS).write_text(json.dumps(asdict(state.history[-1])))


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
            tensors["centers_md"].astype(np.float32), tensors["prices_m"].astype(np.float64), history, header["init"]
        )
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: damaged ({error}); remove it to start the fit again") from None


def delete_fit_state(directory: Location) -> None:
    """Delete the state and the report."""
    (directory / FIT_STATE).delete()
    (directory / FIT_PROGRESS).delete()
