"""Writes experts with equal trunks as one trunk and a small head for each of them."""

from collections.abc import Mapping, Sequence

import safetensors.torch
import torch

from mode_ray.errors import UsageError
from mode_ray.models.architecture import CONFIG_FILE, HEAD_FILE, TRUNK_FILE, WEIGHTS_FILE, model_files
from mode_ray.models.clip import load_clip
from mode_ray.models.shared_trunks import Trunk, Trunks
from mode_ray.run_directory import TRUNK_FOLDER, expert_folder
from mode_ray.storage import Location

Tensors = Mapping[str, torch.Tensor]


def write_shared_trunk(folders: Sequence[Location], target: Location) -> None:
    """Write the weights that all experts have in common to one folder, and the others to a folder for each expert.

    Args:
        folders: Of the experts, in the order of their ids.
        target: The folder of the ensemble.

    Raises:
        UsageError: The experts have neither one image trunk nor one text trunk; names those that differ.
        DataError: A model is missing or damaged.
    """
    trunks = Trunks()
    states: list[Tensors] = []
    towers: dict[str, list[Trunk]] = {"image": [], "text": []}
    for folder in folders:
        clip = load_clip(folder)
        for found, tower in zip(towers.values(), trunks.divide(clip), strict=True):
            found.append(tower.trunk)
        # After the division, equal trunks are the same tensors: one is in memory.
        states.append(clip.module.state_dict())
    _require_one(towers)
    common = {name for name in states[0] if all(_equal(state[name], states[0][name]) for state in states[1:])}
    trunk = target / TRUNK_FOLDER
    for file in model_files(folders[0]):
        if file.name not in (WEIGHTS_FILE, CONFIG_FILE):
            file.copy_to(trunk / file.name)
    _write(trunk / TRUNK_FILE, {name: tensor for name, tensor in states[0].items() if name in common})
    (folders[0] / CONFIG_FILE).copy_to(trunk / CONFIG_FILE)
    for number, state in enumerate(states):
        own = {name: tensor for name, tensor in state.items() if name not in common}
        _write(target / expert_folder(number) / HEAD_FILE, own)


def _require_one(towers: Mapping[str, Sequence[Trunk]]) -> None:
    others = {
        name: [str(number) for number, trunk in enumerate(found) if trunk is not found[0]]
        for name, found in towers.items()
    }
    if all(others.values()):
        named = " and ".join(f"the {name} trunk of experts {', '.join(numbers)}" for name, numbers in others.items())
        raise UsageError(
            f"--shared-trunk: {named} differs from that of expert 0: export without it, or train the experts with "
            "train.model.lock"
        )


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def _write(file: Location, tensors: Tensors) -> None:
    file.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))
