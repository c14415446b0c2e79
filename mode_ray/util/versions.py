"""The versions that a run was made with."""

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
    versions = {"python": platform.python_version()}
    for package in _VERSIONED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
