"""Launch files rendered from values with one template per file. A name without a value is an error.

Files in `templates/` without the suffix `.j2`, such as the Helm chart, are copied unchanged. The files in `starters/`,
which a user edits, are written only if they are missing.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import PurePosixPath

import jinja2

from mode_ray.config.load import read_settings
from mode_ray.deploy.values import OLDEST_DRIVER, ClusterValues
from mode_ray.storage import Location

VALUES_FILE = "values.yaml"
_PACKAGE = "mode_ray.deploy"
_SUFFIX = ".j2"
_NOTE = "# Rendered by `mode-ray cluster-config` from values.yaml: change that file and render again.\n"


def read_values(path: str | None, overrides: Sequence[str] = ()) -> ClusterValues:
    """The values of a YAML file (None: the example values of this package), with `dotted.key=value` overrides.

    Raises:
        UsageError: The file does not exist, or a field is wrong; the message names file and field.
    """
    if path is None:
        path = str(resources.files(_PACKAGE) / "starters" / VALUES_FILE)
    return read_settings(ClusterValues, path, overrides)


def missing_starters(folder: Location) -> dict[str, str]:
    """The text of each starter file that the folder lacks, by name."""
    starters = (resources.files(_PACKAGE) / "starters").iterdir()
    return {file.name: file.read_text() for file in starters if not (folder / file.name).exists()}


def render_all(values: ClusterValues) -> dict[str, str]:
    """The text of every launch file, by its path below `cluster_configs/`."""
    loader = jinja2.PackageLoader(_PACKAGE)
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - YAML; `to_json` quotes the values of an operator
    )
    environment.filters["to_json"] = json.dumps
    given = {**dict(values), "oldest_driver": OLDEST_DRIVER, "concurrent_runs": values.concurrent_runs}
    files = {}
    for name in environment.list_templates(filter_func=lambda name: not _is_imported(name)):
        if name.endswith(_SUFFIX):
            files[name.removesuffix(_SUFFIX)] = _rendered(environment, name, given)
        else:
            files[name], _, _ = loader.get_source(environment, name)
    return files


def write_all(files: Mapping[str, str], folder: Location) -> list[str]:
    """Write the files that are missing or differ; returns their paths."""
    changed = stale_files(files, folder)
    for name in changed:
        (folder / name).write_text(files[name])
    return changed


def stale_files(files: Mapping[str, str], folder: Location) -> list[str]:
    """Paths of the files that are missing in the folder or differ."""
    stale = []
    for name, text in files.items():
        try:
            if (folder / name).read_text() != text:
                stale.append(name)
        except FileNotFoundError:
            stale.append(name)
    return stale


def _is_imported(name: str) -> bool:
    """Whether a file is a part of other templates."""
    return PurePosixPath(name).name.startswith("_") and name.endswith(_SUFFIX)


def _rendered(environment: jinja2.Environment, name: str, given: Mapping[str, object]) -> str:
    return _NOTE + environment.get_template(name).render(given)
