"""Pretrained weights of single towers: an image network of timm and a text encoder of Hugging Face.

They begin a model that has no pretrained CLIP, for example from the files of Python packages where no hub can be
reached. Projections and temperature stay as they were initialised.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from mode_ray.config.train import TowersConfig
from mode_ray.errors import UsageError, first_line
from mode_ray.models.architecture import IMAGE_TOWER_FIELD, TEXT_TOWER_FIELD
from mode_ray.models.checkpoint import read_checkpoint
from mode_ray.models.files import local_checkpoint
from mode_ray.util.packages import resolve_file, resolve_folder

_CLASSIFIER = ("classifier.", "head.", "fc.", "_fc.", "head.fc.")


def load_towers(module: torch.nn.Module, towers: TowersConfig) -> None:
    """Load the weights that a config names.

    Raises:
        UsageError: As `load_image_tower` and `load_text_tower`; or there is no such file.
    """
    if towers.image is not None:
        with local_checkpoint(resolve_file(towers.image, IMAGE_TOWER_FIELD), IMAGE_TOWER_FIELD) as file:
            load_image_tower(module, file, towers.image)
    if towers.text is not None:
        load_text_tower(module, Path(resolve_folder(towers.text, TEXT_TOWER_FIELD)), towers.text)


def load_image_tower(module: torch.nn.Module, file: Path, name: str) -> None:
    """Load the weights of a classification network into the trunk of an image tower.

    The file may use timm's names, or other names in the order of the same network.

    Args:
        module: The open_clip model; its image tower is a network of timm.
        file: A state dict of the network, with or without its classifier.
        name: The file as the user wrote it, for messages.

    Raises:
        UsageError: The tower is not a network of timm, or the file is of another network.
    """
    place = f"{IMAGE_TOWER_FIELD}: {name}"
    trunk = getattr(getattr(module, "visual", None), "trunk", None)
    if trunk is None:
        raise UsageError(f"{place}: the architecture's image tower is no network of timm (no timm_model_name)")
    trunk.load_state_dict(_fitted(trunk.state_dict(), read_checkpoint(file, name, IMAGE_TOWER_FIELD), place))


def load_text_tower(module: torch.nn.Module, folder: Path, name: str) -> None:
    """Load the weights of a Hugging Face encoder into the text tower.

    Args:
        module: The open_clip model; its text tower is an encoder of transformers.
        folder: The encoder's folder, with `config.json` and `model.safetensors`.
        name: The folder as the user wrote it, for messages.

    Raises:
        UsageError: The tower is no encoder of transformers, or the folder has another one.
    """
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    place = f"{TEXT_TOWER_FIELD}: {name}"
    transformer = getattr(getattr(module, "text", None), "transformer", None)
    if transformer is None or not hasattr(transformer, "config"):
        raise UsageError(f"{place}: the architecture's text tower is no encoder of transformers (no hf_model_name)")
    disable_progress_bar()
    try:
        source = AutoModel.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"{place}: cannot be loaded ({first_line(error)})") from None
    transformer.load_state_dict(_fitted(transformer.state_dict(), source.state_dict(), place))


def _fitted(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], place: str
) -> Mapping[str, torch.Tensor]:
    """The tensors under the tower's names: by name, or by their order if the names are another library's."""
    if expected.keys() <= found.keys():
        named = {name: found[name] for name in expected}
    else:
        in_order = [(name, tensor) for name, tensor in found.items() if not name.startswith(_CLASSIFIER)]
        if len(in_order) != len(expected):
            raise UsageError(
                f"{place}: holds {len(in_order)} tensors, and the tower has {len(expected)}: it is another network"
            )
        for name, (other, _) in zip(expected, in_order, strict=True):
            if name.rpartition(".")[2] != other.rpartition(".")[2]:
                raise UsageError(f"{place}: has {other} where the tower has {name}: it is another network")
        named = {name: tensor for name, (_, tensor) in zip(expected, in_order, strict=True)}
    for name, tensor in named.items():
        if tensor.shape != expected[name].shape:
            raise UsageError(
                f"{place}: {name} has shape {list(tensor.shape)} here and {list(expected[name].shape)} in the tower: "
                "it is another network"
            )
    return named
