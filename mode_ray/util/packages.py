"""Files inside installed Python packages: models and model configs from a package index."""

import importlib.util
from pathlib import Path

from mode_ray.errors import UsageError

PREFIX = "package:"


def resolve_folder(name: str, field: str) -> str:
    """Resolve `package:NAME/FOLDER` to the installed folder, and `~`; other names are returned as they are.

    Args:
        name: A folder, a hub id, or a packaged folder.
        field: The config field, for messages.

    Raises:
        UsageError: No such package is installed, or it has no such folder.
    """
    path = resolve_file(name, field)
    if name.startswith(PREFIX) and not Path(path).is_dir():
        raise UsageError(f"{field}: {name}: {path} is not a folder")
    return path


def resolve_file(name: str, field: str) -> str:
    """As `resolve_folder`, for a file or a folder.

    Raises:
        UsageError: No such package is installed, or it has no such file.
    """
    if name.startswith("~"):
        return str(Path(name).expanduser())
    if not name.startswith(PREFIX):
        return name
    package, _, folder = name.removeprefix(PREFIX).partition("/")
    # A dotted name would import its parent.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{field}: {name}: no package {package!r} is installed; pip install it first")
    path = Path(spec.submodule_search_locations[0]) / folder
    if not path.exists():
        raise UsageError(f"{field}: {name}: the installed package has no {folder}; install another version of it")
    return str(path)
