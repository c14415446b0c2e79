"""Whether the models that an evaluation needs are trained, there and whole, before anything is measured."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mode_ray.errors import DataError, UsageError
from mode_ray.models.architecture import CONFIG_FILE, WEIGHTS_FILE
from mode_ray.run_directory import MANIFEST
from mode_ray.storage import Location
from mode_ray.train.plan import Trial, expert_name
from mode_ray.train.runs.status import TrialStatus, stored_statuses
from mode_ray.train.runs.trial import planned_trials_of, training_summary

_LENGTH_BYTES = 8
_MARKED_BYTES = 1 << 16
_MAX_HEADER_BYTES = 100_000_000  # as safetensors has it


@dataclass(frozen=True, eq=False)
class Trained:
    """What a train stage left to evaluate.

    Attributes:
        trials: As they were trained (those of another run had other budgets than this one plans), without those of
            experts that are left out.
        pairs_n: Pairs of every expert.
    """

    trials: Sequence[Trial]
    pairs_n: np.ndarray


def find_trained(n: int, left_out: Sequence[int], directory: Location) -> Trained:
    """The trials to evaluate; all must be finished, but for experts that are left out.

    Args:
        n: Number of experts.
        left_out: Ids of experts to do without.
        directory: Of the train stage, whose manifest need not stand.

    Raises:
        UsageError: An expert that is left out does not exist, or a trial is not finished; names it, and how to go on.
    """
    unknown = [expert for expert in left_out if not 0 <= expert < n]
    if unknown or len(set(left_out)) >= n:
        raise UsageError(
            f"evaluate.leave_out_experts={list(left_out)}: the experts are 0 to {n - 1}, and one must be left"
        )
    summary = training_summary(directory)
    if summary is None:
        raise UsageError(f"{directory}: the train stage is not done: run `mode-ray train` first")
    gone = {expert_name(n, expert) for expert in left_out}
    trials = [trial for trial in planned_trials_of(summary) if trial.name not in gone]
    if not (directory / MANIFEST).exists():
        statuses = stored_statuses(trials, directory).values()
        unfinished = [status for status in statuses if status.state != "finished"]
        if unfinished:
            raise UsageError(_not_trained(n, left_out, directory, unfinished))
    return Trained(trials, np.array(summary["pairs_by_expert"]))


def _not_trained(n: int, left_out: Sequence[int], directory: Location, unfinished: Sequence[TrialStatus]) -> str:
    first = unfinished[0]
    reason = "" if first.reason is None else f" ({first.reason})"
    others = "" if len(unfinished) == 1 else f", and {len(unfinished) - 1} more are not finished"
    text = (
        f"{directory / first.trial}: {first.state}{reason}{others}: the train stage is not done: run `mode-ray train`"
    )
    numbers = {expert_name(n, expert): expert for expert in range(n)}
    failed = [numbers.get(status.trial) for status in unfinished if status.state == "failed"]
    without = sorted({*left_out, *(number for number in failed if number is not None)})
    if None in failed or len(failed) < len(unfinished) or len(without) >= n:
        return f"{text} first"
    return f"{text}, or evaluate without what failed: evaluate.leave_out_experts={without}"


def check_models(n: int, models: Mapping[str, Location]) -> None:
    """Check every model's files without loading one.

    Args:
        n: Number of experts.
        models: Expert folders by name.

    Raises:
        DataError: A file is missing or half-written; names it, and how to go on without an expert.
    """
    experts = {expert_name(n, expert): expert for expert in range(n)}
    for name, folder in models.items():
        problem = find_problem(folder)
        if problem is None:
            continue
        mend = "copy or train it again (`mode-ray train retry`)"
        if name in experts:
            mend += f", or do without it: evaluate.leave_out_experts=[{experts[name]}]"
        raise DataError(f"{problem}: {mend}")


def weights_mark(folder: Location) -> str:
    """What tells an expert's weights from others: a hash (16 hex digits) of the file's size and last bytes.

    Training moves every tensor, so that a small part of them shows another model without reading all of it.
    """
    with (folder / WEIGHTS_FILE).open_input() as source:
        size = source.size()
        tail = bytes(source.read_at(min(size, _MARKED_BYTES), max(0, size - _MARKED_BYTES)))
    return hashlib.blake2b(size.to_bytes(8, "little") + tail, digest_size=8).hexdigest()


def find_problem(folder: Location) -> str | None:
    """What is wrong with an expert folder, the file named; None where nothing is."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).exists():
            return f"{folder / name}: missing"
    weights = folder / WEIGHTS_FILE
    size, expected = weights.size_bytes(), weights.complete(lambda: _expected_bytes(weights))
    if expected is None:
        return f"{weights}: not a readable safetensors file"
    if size != expected:
        return f"{weights}: {size:,} bytes, but its header says {expected:,}: half-written, or cut off while copied"
    return None


def _expected_bytes(weights: Location) -> int | None:
    """The file's size as its header has it: 8 bytes of length, the header, and the tensors behind it."""
    with weights.open_input() as source:
        header_bytes = int.from_bytes(source.read_at(_LENGTH_BYTES, 0), "little")
        if not 0 < header_bytes <= _MAX_HEADER_BYTES:
            return None
        text = bytes(source.read_at(header_bytes, _LENGTH_BYTES))
    try:
        tensors = json.loads(text)
        ends = [int(tensor["data_offsets"][1]) for name, tensor in tensors.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None
    return _LENGTH_BYTES + header_bytes + max(ends, default=0)
