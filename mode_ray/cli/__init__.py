"""The command line, `mode-ray`: `main` parses it, and each other module has one group of commands."""

from mode_ray.cli.main import main

__all__ = ["main"]
