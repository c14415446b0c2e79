"""The text of a run's first config: what was found in the data, and the fields that a run needs, with comments."""

import json
from pathlib import Path

from mode_ray.captions.parquet import DEFAULT_CAPTION_FIELD
from mode_ray.config.captions import CaptionsConfig
from mode_ray.config.load import parse_config, preset_text
from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.starter.look import DataLook, summary

_EPOCHS = 32  # of the paper
_CAPTIONS_PER_CENTER = 50
_MOST_CENTERS = 1024
_FIELDS_SHOWN = 12


def config_text(look: DataLook, run: str, preset: str | None = None) -> str:
    """The config as commented YAML; it is valid.

    Args:
        look: What is in the data.
        run: The run directory.
        preset: Take all sections but `run`, `captions` and `evaluate` from this preset.

    Raises:
        UsageError: There is no such preset.
    """
    body = _body(look) if preset is None else preset_text(preset)
    if body is None:
        raise UsageError(f"--preset {preset}: no such preset; there are small and paper")
    text = "\n".join([*_head(look, run), "", body.rstrip(), *_evaluation(look), ""])
    parse_config(text, "the written config")
    return text


def _head(look: DataLook, run: str) -> list[str]:
    defaults = CaptionsConfig.model_fields
    lines = [
        "# Written by `mode-ray init`. docs/config.md has every field with its default.",
        f"# Found: {summary(look)}",
        "",
        f"run: {_quoted(_absolute(run))}  # the run directory; also s3:// or gs://",
        "captions:",
        f"  paths: [{', '.join(_quoted(_absolute(path)) for path in look.paths)}]",
    ]
    if look.caption_field is None:
        lines.append("  # The captions are the .txt members. For those of the .json members, set caption_field.")
    elif look.caption_field != DEFAULT_CAPTION_FIELD or look.format == "webdataset":
        lines.append(f"  caption_field: {_quoted(look.caption_field)}")
    if not look.header:
        lines.append("  header: false  # the first line is a row, so columns have numbers, from 0")
    if look.delimiter is not None:
        lines.append(f"  delimiter: {_quoted(look.delimiter)}")
    if look.image_field is not None and look.image_field != defaults["image_field"].default:
        lines.append(f"  image_field: {_quoted(look.image_field)}")
    if look.fields:
        # Escaped: a line separator in a name would end the comment.
        lines.append(f"  # Other fields: {', '.join(json.dumps(name) for name in look.fields[:_FIELDS_SHOWN])}")
    return lines


def _body(look: DataLook) -> str:
    centers, experts, batch = _centers(look.captions), _experts(look.captions), _batch(look.captions)
    lines = [
        "encoder:",
        "  # The paper's, from the Hugging Face hub (0.4 GB). Any Hugging Face id, or a folder.",
        "  model: princeton-nlp/sup-simcse-bert-base-uncased",
        "cluster:",
        f"  fine: {{centers: {centers}}}  # groups of captions with one meaning; the paper's: 1024",
        f"  coarse: {{experts: [{experts}]}}  # the numbers of experts to make a map for",
    ]
    if not look.has_images:
        return "\n".join([*lines, "# There are no images to train on: no section `train`. See --until below."])
    return "\n".join(
        [
            *lines,
            "train:",
            f"  experts: {experts}",
            "  model:",
            f"    architecture: {RunConfig.model_fields['train'].default.model.architecture}"
            "  # any open_clip name, or a folder with open_clip_config.json",
            "    precision: float32  # bfloat16 on GPUs",
            f"  dense_samples: {_EPOCHS * look.captions}  # samples one dense model would see: {_EPOCHS} epochs",
            f"  batch_size: {batch}  # as large as memory allows; the paper's: 32,768",
            "  placement: {workers_per_run: 1, use_gpu: false}",
        ]
    )


def _evaluation(look: DataLook) -> list[str]:
    if not look.has_images:
        return []
    return ["evaluate:", "  tasks: []  # task files with images and classes or captions: docs/tasks.md"]


def next_steps(look: DataLook, file: str) -> list[str]:
    """What to type next."""
    steps = [
        f"Read and edit it:        {file}",
        f"Embed, cluster, assign:  mode-ray run --config {file} --until assign",
    ]
    if look.has_images:
        steps += [
            f"Train:                   mode-ray run --config {file} --until train",
            f"Evaluate:                add task files to evaluate.tasks, then mode-ray run --config {file}",
        ]
    return steps


def _centers(captions: int) -> int:
    """A power of two with some fifty captions a center; fewer captions than 32 get half as many centers."""
    if captions < 2 * 16:
        return max(1, captions // 2)
    return min(_MOST_CENTERS, max(16, 1 << max(1, captions // _CAPTIONS_PER_CENTER).bit_length() - 1))


def _experts(captions: int) -> int:
    return min(4, _centers(captions))


def _batch(captions: int) -> int:
    default: int = RunConfig.model_fields["train"].default.batch_size
    return min(default, 1 << max(0, captions.bit_length() - 1))


def _absolute(path: str) -> str:
    return path if "://" in path or path.startswith("/") else str(Path(path).expanduser().absolute())


def _quoted(text: str) -> str:
    """A string as YAML: JSON's strings are YAML's."""
    return json.dumps(text, ensure_ascii=False)
