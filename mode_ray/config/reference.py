"""Writes docs/config.md from the types, defaults and attribute docstrings of the config sections.

A test compares the page with `python -m mode_ray.config.reference`.
"""

import inspect
import json
import sys
import types
from typing import Annotated, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from mode_ray.config.base import Placement, Settings
from mode_ray.config.run import RunConfig

_HEAD = """# Configuration

One YAML file configures a run. Every stage reads its own sections of it. Any field can be overridden on the
command line, by its dotted name:

    mode-ray run --config my.yaml cluster.fine.centers=256 'cluster.coarse.experts=[2, 4]'

Unknown keys and wrong types are refused, and the message names the field. `demo`, `small` and `paper` are presets:
give the name instead of a file. `mode-ray init DATA` writes a commented config after a look at the data, and with
`--preset paper` it takes over the settings of that preset.

Only `run` and `captions` are required. `train` also needs `train.dense_samples`, and `evaluate` needs
`evaluate.tasks`. What the stages of a command need is checked before the first of them starts: the encoder, the
architecture, the checkpoint, the image column, the task files, and whether the batch fits the budget.

The defaults of training suit a laptop; the paper's are in the preset `paper`. Up to version 0.1.0 these defaults were
the paper's: `train.model.architecture: ViT-B-16`, `train.model.precision: bfloat16`, `train.batch_size: 32768`,
`train.optimizer.warmup_samples: 65536000`. A run that was begun with them keeps them: where your file does not set
these fields, the stages use the values in the run's own `config.yaml`.

A stage that has begun keeps its config. To change a field, choose another run directory or delete the stage's
directory. Sections marked *placement* only decide where and how fast to work, and may change at any time.

`python -m mode_ray.config.reference` writes this page from the modules in `mode_ray/config`.
"""


def config_reference() -> str:
    """Every field of `RunConfig` with type, default and meaning, as Markdown."""
    return "\n".join([_HEAD, *_section(RunConfig, (), None)])


def _section(model: type[Settings], path: tuple[str, ...], values: Settings | None) -> list[str]:
    """One table of the section's own fields, then its sub-sections in order.

    Args:
        model: The section.
        path: Its dotted name.
        values: The section that the config has by default; None if it has required fields.
    """
    note = " (placement)" if issubclass(model, Placement) else ""
    title = f"## `{'.'.join(path)}`{note}" if path else "## Top level"
    fields = model.model_fields
    subsections = {name: field.annotation for name, field in fields.items() if _is_section(field.annotation)}
    lines = [title, "", inspect.cleandoc(model.__doc__ or ""), ""]
    rows = [_row(name, field, values) for name, field in fields.items() if name not in subsections]
    if rows:
        lines += ["| field | type | default | |", "|---|---|---|---|", *rows, ""]
    for name, section in subsections.items():
        if isinstance(section, type):
            default = fields[name].get_default(call_default_factory=True) if values is None else getattr(values, name)
            lines += _section(section, (*path, name), default if isinstance(default, Settings) else None)
    return lines


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _row(name: str, field: FieldInfo, values: Settings | None) -> str:
    kind = _type_name(field.annotation) + _bounds(field.metadata)
    default = "**required**" if field.is_required() else f"`{_default(name, field, values)}`"
    meaning = " ".join((field.description or "").split())
    return f"| `{name}` | {kind} | {default} | {_escaped(meaning)} |"


def _default(name: str, field: FieldInfo, values: Settings | None) -> str:
    value = field.get_default(call_default_factory=True) if values is None else getattr(values, name)
    return json.dumps(value, ensure_ascii=False)


def _type_name(annotation: object) -> str:
    """A type in words: `int`, `list of str`, `float or null`, or the allowed values."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = parts[1].metadata if isinstance(parts[1], FieldInfo) else parts[1:]
        return _type_name(parts[0]) + _bounds(list(bounds))
    if origin in (Literal, Union, types.UnionType):
        names = (f"`{part}`" if origin is Literal else _type_name(part) for part in parts)
        return (", " if origin is Literal else " or ").join(names)
    if origin is tuple:
        length = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        return f"list of {length}{_type_name(parts[0])}"
    if origin is dict:
        return f"mapping of {_type_name(parts[0])} to {_type_name(parts[1])}"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _bounds(metadata: list[object]) -> str:
    """The limits of a number, as ` > 0` or ` ≥ 0, ≤ 1`."""
    signs = []
    for limit in metadata:
        if isinstance(limit, annotated_types.Gt):
            signs.append(f"> {limit.gt:g}")
        elif isinstance(limit, annotated_types.Ge):
            signs.append(f"≥ {limit.ge:g}")
        elif isinstance(limit, annotated_types.Le):
            signs.append(f"≤ {limit.le:g}")
        elif isinstance(limit, annotated_types.Lt):
            signs.append(f"< {limit.lt:g}")
    return f" {', '.join(signs)}" if signs else ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(config_reference())
