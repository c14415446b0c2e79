"""The average is the weighted mean of every tensor, in the experts' own dtypes, of one and the same model only."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mode_ray.errors import DataError
from mode_ray.export.average import average_weights
from mode_ray.storage import Location


def folder(root: Path, name: str, **tensors: torch.Tensor) -> Location:
    location = Location.parse(str(root / name))
    (location / "open_clip_model.safetensors").write_bytes(safetensors.torch.save(tensors))
    return location


def test_tensors_are_averaged_with_weights_that_need_not_sum_to_one(tmp_path: Path) -> None:
    folders = [
        folder(tmp_path, "a", scale=torch.tensor(4.0), matrix=torch.tensor([[1.0, 2.0]])),
        folder(tmp_path, "b", scale=torch.tensor(2.0), matrix=torch.tensor([[5.0, 10.0]])),
    ]
    mean = average_weights(folders, np.array([300, 100]))
    assert mean["scale"].item() == 3.5
    assert mean["matrix"].tolist() == [[2.0, 4.0]]


def test_dtypes_stay_and_counters_are_rounded(tmp_path: Path) -> None:
    folders = [
        folder(tmp_path, "a", half=torch.tensor([1.0], dtype=torch.bfloat16), steps=torch.tensor(10)),
        folder(tmp_path, "b", half=torch.tensor([2.0], dtype=torch.bfloat16), steps=torch.tensor(13)),
    ]
    mean = average_weights(folders, np.ones(2))
    assert (mean["half"].dtype, mean["half"].item()) == (torch.bfloat16, 1.5)
    assert (mean["steps"].dtype, mean["steps"].item()) == (torch.int64, 12)


def test_many_experts_lose_no_precision(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(9, 50)).astype(np.float32) * 1e4
    weights = np.arange(1.0, 10.0)
    folders = [folder(tmp_path, str(number), x=torch.tensor(row)) for number, row in enumerate(values)]
    mean = average_weights(folders, weights)["x"].numpy()
    expected = np.average(values.astype(np.float64), axis=0, weights=weights).astype(np.float32)
    np.testing.assert_array_equal(mean, expected)


@pytest.mark.parametrize("other", [{"x": torch.zeros(3)}, {"x": torch.zeros(2), "y": torch.zeros(1)}, {}])
def test_another_model_is_refused_by_file_and_tensor(tmp_path: Path, other: dict[str, torch.Tensor]) -> None:
    folders = [folder(tmp_path, "a", x=torch.zeros(2)), folder(tmp_path, "b", **other)]
    with pytest.raises(DataError, match=r"b/open_clip_model.safetensors: not the same model .* \([xy]\)"):
        average_weights(folders, np.ones(2))


def test_a_missing_or_damaged_expert_is_named(tmp_path: Path) -> None:
    whole = folder(tmp_path, "a", x=torch.zeros(2))
    with pytest.raises(DataError, match=r"b/open_clip_model\.safetensors: missing"):
        average_weights([whole, Location.parse(str(tmp_path / "b"))], np.ones(2))
    (whole / "open_clip_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a/open_clip_model\.safetensors: damaged"):
        average_weights([whole], np.ones(1))
