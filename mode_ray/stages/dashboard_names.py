"""Names by which Ray's dashboard and metrics show our work: the stage, and the run by the name of its directory."""

import re

from mode_ray.storage import Location

_OTHER = re.compile(r"[^A-Za-z0-9._-]")


def shown_name(directory: Location, parts: int = 1) -> str:
    """The last parts of a directory's path, joined by dots.

    Ray uses names in tags of metrics and in names of files: other characters than ASCII letters and digits become `_`.
    """
    return _OTHER.sub("_", ".".join(directory.uri.rstrip("/").split("/")[-parts:])) or "_"
