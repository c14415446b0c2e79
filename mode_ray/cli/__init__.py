"""The command line, `mode-ray`: `main` reads it, and each other module holds one group of commands."""

from mode_ray.cli.main import main

__all__ = ["main"]
