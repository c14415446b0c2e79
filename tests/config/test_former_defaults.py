"""A run that was begun with a default of before keeps it, unless the config sets the field."""

from functools import reduce
from pathlib import Path

import pytest
import yaml

from mode_ray.config.base import fingerprint_fields
from mode_ray.config.former_defaults import FORMER_DEFAULTS, keep_former_defaults
from mode_ray.config.load import dump_config, load_config, with_values
from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.storage import Location


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(f"run: {tmp_path}/run\ncaptions: {{paths: [a.parquet]}}\ntrain: {{dense_samples: 65536}}\n")
    return path


@pytest.fixture
def own(file: Path, tmp_path: Path) -> Location:
    """The config that version 0.1.0 wrote into the run directory for this file."""
    location = Location.parse(str(tmp_path / "run" / "config.yaml"))
    location.write_text(dump_config(with_values(load_config(str(file)), FORMER_DEFAULTS)))
    return location


def values(config: RunConfig) -> dict[str, object]:
    return {name: reduce(getattr, name.split("."), config) for name in FORMER_DEFAULTS}


def test_fields_that_the_config_does_not_set_are_kept(file: Path, own: Location) -> None:
    assert values(load_config(str(file))) != FORMER_DEFAULTS
    assert values(keep_former_defaults(load_config(str(file)), own)) == FORMER_DEFAULTS


def test_fields_that_it_sets_are_as_it_says(file: Path, own: Location) -> None:
    config = load_config(str(file), ["train.batch_size=64", "train.model={precision: float32}"])
    kept = values(keep_former_defaults(config, own))
    assert kept == {**FORMER_DEFAULTS, "train.batch_size": 64, "train.model.precision": "float32"}


def test_other_values_of_the_run_are_no_defaults(file: Path, own: Location) -> None:
    own.write_text(dump_config(with_values(load_config(str(file)), {"train.batch_size": 128})))
    assert keep_former_defaults(load_config(str(file)), own).train.batch_size == 64


def test_a_field_that_did_not_exist_is_none_and_changes_no_fingerprint(file: Path, own: Location) -> None:
    written = yaml.safe_load(own.read_text())
    del written["train"]["data"]["read_block_pairs"]
    own.write_text(yaml.safe_dump(written))
    kept = keep_former_defaults(load_config(str(file)), own)
    assert kept.train.data.read_block_pairs is None
    assert "train.data.read_block_pairs" not in fingerprint_fields(kept.train, "train")


def test_a_new_run_has_the_defaults_of_now(file: Path, tmp_path: Path) -> None:
    config = load_config(str(file))
    assert keep_former_defaults(config, Location.parse(str(tmp_path / "run/config.yaml"))) is config


def test_a_damaged_config_of_the_run_is_named(file: Path, own: Location) -> None:
    own.write_text("run: [")
    with pytest.raises(UsageError, match=r"run/config\.yaml: not valid YAML"):
        keep_former_defaults(load_config(str(file)), own)
