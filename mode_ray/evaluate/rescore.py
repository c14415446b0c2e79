"""Other routing on a finished evaluation: a second report from the stored cosines, without running a model."""

from mode_ray.config.base import config_hash
from mode_ray.errors import UsageError
from mode_ray.evaluate.stage import write_report
from mode_ray.run_directory import MANIFEST, RULES_DIRECTORY
from mode_ray.stages.manifest import Stage
from mode_ray.stages.run import Run
from mode_ray.storage import Location

_RULES_FIELD = "evaluate.rules"
_ROUTING_PREFIX = "routing."


def rescore(run: Run, stage: Stage) -> Location:
    """Write a report under the config's routing, beside the run's own, which stays as it is.

    Args:
        run: The run, with other fields of `routing` or other `evaluate.rules`.
        stage: The evaluate stage, with the fields of that config.

    Returns:
        The report's directory, `evaluation/rules/<hash of the routing>`.

    Raises:
        UsageError: The evaluate stage is not done, or the config differs from its own in more than the routing.
        DataError: A measurement is missing or damaged.
    """
    done = stage.manifest()
    if done is None:
        raise UsageError(f"{stage.directory}: the evaluate stage is not done: run `mode-ray evaluate` first")
    # Evaluations that were made before an expert could be left out had all of them.
    before = {"evaluate.leave_out_experts": [], **done.fields}
    changed = [name for name in sorted({*stage.fields, *before}) if stage.fields.get(name) != before.get(name)]
    others = [name for name in changed if not _decides_routing(name)]
    if others:
        name = others[0]
        raise UsageError(
            f"{name} was {before.get(name)!r} when {stage.directory / MANIFEST} was written, is "
            f"{stage.fields.get(name)!r}: only routing.* and {_RULES_FIELD} can change without measuring again"
        )
    number = config_hash({name: value for name, value in stage.fields.items() if _decides_routing(name)})
    target = stage.directory / RULES_DIRECTORY / number
    write_report(run, target)
    return target


def _decides_routing(name: str) -> bool:
    return name.startswith(_ROUTING_PREFIX) or name == _RULES_FIELD
