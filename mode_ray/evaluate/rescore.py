"""Other routing on a finished evaluation: a second report from the cosines that it stored, without running a model."""

from mode_ray.captions.listing import list_work_units, read_listing
from mode_ray.config.base import config_hash
from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.evaluate.stage import write_report
from mode_ray.pipeline import build_stages
from mode_ray.run_directory import LISTING, MANIFEST, RULES_DIRECTORY, stage_directories
from mode_ray.stages.manifest import read_manifest
from mode_ray.storage import Location

_RULES_FIELD = "evaluate.rules"
_ROUTING_PREFIX = "routing."


def rescore(config: RunConfig) -> Location:
    """Write a report under the config's routing, beside the run's own, which stays as it is.

    Args:
        config: The run's config, with other fields of `routing` or other `evaluate.rules`.

    Returns:
        The report's directory, `evaluation/rules/<hash of the routing>`.

    Raises:
        UsageError: The evaluate stage is not done, or the config differs from its own in more than the routing.
        DataError: A measurement is missing or damaged.
    """
    directories = stage_directories(config.directory)
    done = read_manifest(directories["evaluate"])
    if done is None:
        raise UsageError(f"{directories['evaluate']}: the evaluate stage is not done: run `mode-ray evaluate` first")
    work_units = list_work_units(config.captions, read_listing(config.directory / LISTING, config.captions))
    fields = build_stages(config, work_units)["evaluate"].fields
    # Evaluations that were made before an expert could be left out had all of them.
    before = {"evaluate.leave_out_experts": [], **done.fields}
    changed = [name for name in sorted(set(fields) | set(before)) if fields.get(name) != before.get(name)]
    others = [name for name in changed if not _decides_routing(name)]
    if others:
        name = others[0]
        raise UsageError(
            f"{name} was {before.get(name)!r} when {directories['evaluate'] / MANIFEST} was written, is "
            f"{fields.get(name)!r}: only routing.* and {_RULES_FIELD} can change without measuring again"
        )
    number = config_hash({name: value for name, value in fields.items() if _decides_routing(name)})
    target = directories["evaluate"] / RULES_DIRECTORY / number
    write_report(config, work_units, directories, target)
    return target


def _decides_routing(name: str) -> bool:
    return name.startswith(_ROUTING_PREFIX) or name == _RULES_FIELD
