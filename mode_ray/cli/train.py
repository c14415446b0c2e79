"""The commands that train: the stage, one failed run again, experts for another run's models, and a sweep."""

from typing import Annotated

import typer

from mode_ray.cli.shared import Config, Overrides, console, load, on_ray, say
from mode_ray.cli.stages import run_stages, stage_group

group = stage_group("train", "Train the seed, the dense baseline and the experts.")


@group.command()
def retry(
    config: Config,
    trial: Annotated[
        str, typer.Argument(metavar="TRIAL", help="Expert's number, or name of the run as in mode-ray status.")
    ],
    overrides: Overrides,
) -> None:
    """Train one run again that failed, and no other."""
    with on_ray(load(config, overrides)) as pipeline:
        pipeline.retry(trial)


@group.command()
def add(
    config: Config,
    source: Annotated[str, typer.Option("--from", metavar="RUN", help="The other run's directory; it is only read.")],
    overrides: Overrides,
) -> None:
    """Train only the experts that another run does not have."""
    from mode_ray.storage import Location

    reused = Location.parse(source).uri
    run_stages(load(config, [*overrides, f"train.reuse={reused}"]), ("train",), console())
    say(f"later stages: mode-ray evaluate --config {config} train.reuse={reused}")


def sweep(config: Config, overrides: Overrides) -> None:
    """Try out training fields, and write the best ones as a config."""
    with on_ray(load(config, overrides)) as pipeline:
        report = pipeline.sweep()
    from mode_ray.run_directory import SWEEP_BEST
    from mode_ray.sweep.results import sweep_table

    console().print(sweep_table(report.results, report.measurements))
    say(f"the winner as a config: {report.folder / SWEEP_BEST}")
