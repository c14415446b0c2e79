"""The reference in docs/api.md, made of the signatures and docstrings of the public names.

`python -m mode_ray.api_reference docs/api.md` replaces what follows the heading `## Reference`. A test compares
the page with the code.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from mode_ray.assign.captions import AssignCaptions
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.load import load_config
from mode_ray.ensemble.ensemble import Classification, Ensemble, load
from mode_ray.ensemble.expert import EnsembleExpert
from mode_ray.ensemble.open_clip_model import EnsembleModel, EnsembleTokenizer
from mode_ray.ensemble.task import NearestCluster, Task
from mode_ray.pipeline_run import PipelineRun, run
from mode_ray.routing.router import routing_weights_of
from mode_ray.routing.weights import RoutingWeights

HEADING = "## Reference"
# Name, object, and the methods and properties to show.
_ENTRIES: Sequence[tuple[str, object, Sequence[str]]] = (
    ("mode_ray.load", load, ()),
    ("mode_ray.run", run, ()),
    ("PipelineRun", PipelineRun, ("status", "report", "ensemble")),
    (
        "Ensemble",
        Ensemble,
        (
            "task",
            "classify",
            "encode_image",
            "encode_text",
            "weights_of_each",
            "create_model_and_transforms",
            "get_tokenizer",
            "experts",
            "clustering",
            "n",
        ),
    ),
    ("Classification", Classification, ("to_list",)),
    ("Task", Task, ("why",)),
    ("NearestCluster", NearestCluster, ()),
    ("EnsembleExpert", EnsembleExpert, ("encode_image", "encode_text")),
    ("EnsembleModel", EnsembleModel, ("encode_image", "encode_text", "forward")),
    ("EnsembleTokenizer", EnsembleTokenizer, ("__call__",)),
    ("mode_ray.Clustering", Clustering, ("load", "assign", "expert_of", "experts_of")),
    ("mode_ray.AssignCaptions", AssignCaptions, ("__call__",)),
    ("mode_ray.routing_weights", routing_weights_of, ()),
    ("RoutingWeights", RoutingWeights, ()),
    ("mode_ray.load_config", load_config, ()),
)
_WIDTH = 90
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$")
_ENTRY = re.compile(r"^([\w]+): (.*)$")


def api_reference() -> str:
    """The reference with its heading, as Markdown."""
    lines = [HEADING, ""]
    for name, documented, methods in _ENTRIES:
        lines += [f"### {name}", ""]
        if inspect.isfunction(documented):
            lines += _code(name, _signature(documented, skip=0))
        lines += [*_markdown(inspect.getdoc(documented) or ""), ""]
        for method in methods:
            lines += _member(name, documented, method)
    return "\n".join(lines).rstrip() + "\n"


def _member(owner: str, documented: object, name: str) -> list[str]:
    value = inspect.getattr_static(documented, name)
    function = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
    is_value = function is not value and not isinstance(value, classmethod | staticmethod)
    heading = f"#### {owner.removeprefix('mode_ray.')}.{name}"
    shown = f": {_returned(function)}" if is_value else _signature(function, skip=1)
    return [heading, "", *_code(name, shown), *_markdown(inspect.getdoc(function) or ""), ""]


def _code(name: str, signature: str) -> list[str]:
    return ["```python", f"{name}{signature}", "```", ""]


def _tree(function: object) -> ast.FunctionDef:
    source = textwrap.dedent(inspect.getsource(function))  # type: ignore[arg-type]
    [tree] = ast.parse(source).body
    if not isinstance(tree, ast.FunctionDef):
        raise TypeError(f"{function}: not a function")
    return tree


def _returned(function: object) -> str:
    returns = _tree(function).returns
    return "" if returns is None else ast.unparse(returns).strip("'\"")


def _signature(function: object, skip: int) -> str:
    """The arguments as the source has them, without the first `skip`."""
    arguments = _tree(function).args
    arguments.args = arguments.args[skip:]
    written = f"({ast.unparse(arguments)}) -> {_returned(function)}"
    if len(written) <= _WIDTH:
        return written
    parts = re.split(r", (?=[*\w]+(?::|,|$))", ast.unparse(arguments))
    return "(\n" + "".join(f"    {part},\n" for part in parts) + f") -> {_returned(function)}"


def _markdown(docstring: str) -> Iterator[str]:
    """A docstring in Google style: its sections as lists."""
    section = ""
    for line in docstring.splitlines():
        found = _SECTION.match(line)
        if found:
            section = found[1]
            yield from (f"*{section}*", "")
        elif not section or not line.strip():
            yield line
        else:
            text = line[4:]
            entry = _ENTRY.match(text) if section != "Returns" else None
            if entry:
                yield f"- `{entry[1]}`: {entry[2]}"
            elif text.startswith(" ") or section == "Returns":
                yield f"  {text.strip()}" if section != "Returns" else text.strip()
            else:
                yield text


def with_reference(page: str) -> str:
    """A page whose part from the heading `## Reference` on is replaced."""
    return page[: page.index(HEADING)] + api_reference()


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(with_reference(file.read_text()))
