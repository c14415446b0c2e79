"""The versions that a run was made with."""

import functools
import platform
from importlib import metadata

_VERSIONED_PACKAGES = (
    "mode_ray",
    "ray",
    "torch",
    "open_clip_torch",
    "pyarrow",
    "numpy",
    "faiss-cpu",
    "faiss-gpu",
)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape the outputs."""
    return dict(_package_versions())


@functools.cache
def _package_versions() -> dict[str, str]:
    """The same, read once a process: finding a package takes milliseconds."""
    versions = {"python": platform.python_version()}
    for package in _VERSIONED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
