"""A model that is missing or half-written is found before anything is measured, its file named."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mode_ray.errors import DataError
from mode_ray.evaluate.models import check_models, find_problem
from mode_ray.storage import Location
from mode_ray.train.architecture import CONFIG_FILE, WEIGHTS_FILE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config and weights."""
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"model_cfg": {}}))
    safetensors.torch.save_file({"a": torch.ones(50), "b": torch.ones(3, 4)}, tmp_path / WEIGHTS_FILE, {"about": "x"})
    return tmp_path


def problem(folder: Path) -> str | None:
    return find_problem(Location.parse(str(folder)))


def test_a_whole_model_has_no_problem(folder: Path) -> None:
    assert problem(folder) is None


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert problem(folder) == f"{folder / name}: missing"


def test_half_a_file_is_told_from_a_whole_one(folder: Path) -> None:
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[:-100])
    assert problem(folder) == (
        f"{folder / WEIGHTS_FILE}: {len(data) - 100} bytes, but its header says {len(data)}: half-written, or cut off "
        "while copied"
    )


@pytest.mark.parametrize("data", [b"", b"short", bytes(64), b"\xff" * 64, (8).to_bytes(8, "little") + b"not json"])
def test_what_is_no_safetensors_file_is_said(folder: Path, data: bytes) -> None:
    (folder / WEIGHTS_FILE).write_bytes(data)
    assert problem(folder) == f"{folder / WEIGHTS_FILE}: not a readable safetensors file"


def test_the_error_says_how_to_go_on_without_an_expert(folder: Path) -> None:
    location = Location.parse(str(folder))
    check_models(2, {"n2/01": location})
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(DataError, match=r"missing: .*evaluate.leave_out_experts=\[1\]"):
        check_models(2, {"n2/01": location})
    with pytest.raises(DataError) as raised:
        check_models(2, {"dense": location})
    assert "leave_out" not in str(raised.value)
