"""What an exported ensemble states about itself."""

import json
from pathlib import Path

import pytest

from mode_ray.config.images import ImagesConfig
from mode_ray.errors import DataError
from mode_ray.routing.description import EnsembleDescription, read_description, write_description
from mode_ray.run_directory import ENSEMBLE_FILE
from mode_ray.storage import Location


def test_it_states_how_images_become_pixels(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    description = EnsembleDescription(experts=2, images=ImagesConfig(background="#000000"))
    write_description(folder, description)
    assert read_description(folder) == description


def test_version_0_1_0_can_read_it_if_images_have_their_defaults(tmp_path: Path) -> None:
    write_description(Location(str(tmp_path)), EnsembleDescription(experts=2))
    assert set(json.loads((tmp_path / ENSEMBLE_FILE).read_text())) == {"experts", "encoder", "routing"}
    assert read_description(Location(str(tmp_path))) == EnsembleDescription(experts=2)


def test_a_wrong_color_is_named(tmp_path: Path) -> None:
    (tmp_path / ENSEMBLE_FILE).write_text('{"experts": 2, "images": {"background": "white"}}')
    with pytest.raises(DataError, match=r"mode_ray\.json: not a description .*images\.background"):
        read_description(Location(str(tmp_path)))
