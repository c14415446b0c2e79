"""`mode_ray.json`: what an exported ensemble states about itself, so that `mode_ray.load` can read it."""

import json

from pydantic import Field, ValidationError

from mode_ray.config.base import PositiveInt, Settings
from mode_ray.config.captions import EncoderConfig
from mode_ray.config.evaluate import RoutingConfig
from mode_ray.config.images import ImagesConfig
from mode_ray.errors import DataError
from mode_ray.run_directory import ENSEMBLE_FILE
from mode_ray.storage import Location


class EnsembleDescription(Settings):
    """The content of `mode_ray.json`."""

    experts: PositiveInt
    """Number of experts; their folders are `expert-00`, `expert-01`, …"""
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    """The caption encoder that the clustering was made with."""
    routing: RoutingConfig = RoutingConfig()
    """The routing rule and its parameters."""
    images: ImagesConfig = ImagesConfig()
    """How images become pixels, as in the training of the experts."""


def write_description(folder: Location, description: EnsembleDescription) -> None:
    """Write `mode_ray.json` into the folder of an exported ensemble."""
    # Version 0.1.0 reads the file too, if it has no field that is new since.
    unknown_before = {"images"} if description.images == ImagesConfig() else None
    (folder / ENSEMBLE_FILE).write_text(description.model_dump_json(indent=1, exclude=unknown_before) + "\n")


def read_description(folder: Location) -> EnsembleDescription | None:
    """Read `mode_ray.json`; None where there is none, as in exports of version 0.1.0.

    Raises:
        DataError: The file is damaged.
    """
    file = folder / ENSEMBLE_FILE
    if not file.exists():
        return None
    try:
        return EnsembleDescription.model_validate(json.loads(file.read_text()))
    except (ValueError, ValidationError) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{file}: not a description of an ensemble ({problem}); export the run again") from None
