"""Whether the caption encoder can be loaded, answered within seconds and without torch."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mode_ray.config.captions import EncoderConfig
from mode_ray.errors import UsageError
from mode_ray.util.hub import hub_problem
from mode_ray.util.packages import resolve_folder

FIELD = "encoder.model"
# The files of transformers: the weights whole, or the list of their parts.
_WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
_CONFIG = "config.json"
TABLE_PATTERNS = ("*.safetensors",)
TOKENIZER_PATTERNS = ("tokenizer.json", "*tokenizer*.json")


def require_encoder(config: EncoderConfig) -> None:
    """Check that the encoder is a folder with a model, in the cache of Hugging Face models, or on the hub.

    Raises:
        UsageError: It is not; the message says what to do.
    """
    if config.dtype == "int8" and find_spec("openvino") is None:
        raise UsageError("encoder.dtype: int8 needs OpenVINO: run `pip install 'mode_ray[openvino]'`")
    path = Path(resolve_folder(config.model, FIELD))
    if config.kind == "static":
        only_file(path, TOKENIZER_PATTERNS, config)
        only_file(path, TABLE_PATTERNS, config)
    elif path.is_dir():
        _require_model(path, config)
    elif config.model.startswith(("/", "./", "../", "~")) or "://" in config.model:
        raise UsageError(f"{FIELD}: {config.model}: no such folder on this machine")
    else:
        problem = hub_problem(config.model, _WEIGHTS)
        if problem is not None:
            raise UsageError(f"{FIELD}: {config.model}: {problem}")


def only_file(folder: Path, patterns: Sequence[str], config: EncoderConfig) -> Path:
    """The one file below a folder that matches the first pattern with any match.

    Raises:
        UsageError: There is none, or more than one.
    """
    matches = [sorted(folder.rglob(pattern)) for pattern in patterns] if folder.is_dir() else []
    found = next((files for files in matches if files), [])
    if len(found) != 1:
        raise UsageError(f"{FIELD}: {config.model}: expected one {patterns[-1]} below {folder}, found {len(found)}")
    return found[0]


def _require_model(folder: Path, config: EncoderConfig) -> None:
    if not (folder / _CONFIG).is_file():
        raise UsageError(
            f"{FIELD}: {config.model}: {folder} has no {_CONFIG}; name the folder of a transformers model"
        )
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise UsageError(f"{FIELD}: {config.model}: {folder} has no weights ({' or '.join(_WEIGHTS[:2])})")
