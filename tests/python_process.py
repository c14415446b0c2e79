"""Programs that need a Python process of their own."""

import sys

# A third of the time of a process that imports open_clip and ends goes to collections that free nothing.
_BEGIN = "import atexit, gc\ngc.disable()\natexit.register(gc.freeze)\n"


def python_command(program: str, *arguments: object) -> list[str]:
    """The command that runs a program; without garbage collections, because it ends soon."""
    return [sys.executable, "-c", _BEGIN + program, *map(str, arguments)]
