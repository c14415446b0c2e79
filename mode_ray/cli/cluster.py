"""The commands about the clustering: fit it, extend it, look at it, and compare new captions with it."""

from typing import Annotated

import typer

from mode_ray.cli.shared import Config, Overrides, flag, load, on_ray, say
from mode_ray.cli.stages import stage_group

group = stage_group("cluster", "Fit the fine centers and group them into experts.")


@group.command()
def extend(
    config: Config,
    centers: Annotated[int, typer.Option(help="Number of new fine centers.")],
    to: Annotated[str, typer.Option(metavar="DIRECTORY", help="Directory of the new clustering; absent or empty.")],
    overrides: Overrides,
    new_expert: Annotated[bool, flag("--new-expert", "The new centers make an expert of their own.")] = False,
    far_quantile: Annotated[
        float | None, typer.Option(help="What counts as far (default: drift.far_quantile).")
    ] = None,
) -> None:
    """Make a new clustering with further centers for far captions."""
    settings = load(config, overrides)
    from mode_ray.new_data.extend import ExtensionRequest
    from mode_ray.storage import Location

    request = ExtensionRequest(
        centers=centers,
        target=Location.parse(to),
        far_quantile=settings.drift.far_quantile if far_quantile is None else far_quantile,
        new_expert=new_expert,
    )
    with on_ray(settings) as pipeline:
        clustering = pipeline.extend(request)
    say(
        f"{len(clustering.centers_md)} centers, maps for n={sorted(clustering.coarse)}: {request.target}\n"
        f"assign captions with it: cluster.reuse={request.target}"
    )


def atlas(config: Config, overrides: Overrides) -> None:
    """Write an HTML page of the clustering: map, sizes, terms, captions."""
    with on_ray(load(config, overrides)) as pipeline:
        page = pipeline.atlas()
    say(f"atlas: {page}")


def drift(config: Config, overrides: Overrides) -> None:
    """Compare the captions with those that the clustering was fitted on."""
    with on_ray(load(config, overrides)) as pipeline:
        pipeline.drift()
