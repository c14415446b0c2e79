"""Errors for the user: each message is one sentence that says where it failed and how to fix it."""

from typing import ClassVar


class ModeRayError(Exception):
    """An error that the command line shows as one line, without a stack trace."""

    exit_code: ClassVar[int] = 1


class UsageError(ModeRayError):
    """A wrong config, argument or run directory: exit code 2."""

    exit_code: ClassVar[int] = 2


class DataError(ModeRayError):
    """Input data that cannot be used: exit code 1. The message names the file, and the row or field."""


class WriteError(ModeRayError, OSError):
    """Output that cannot be written: exit code 1. Also an OSError, because a retry may succeed."""


class WorkerError(ModeRayError):
    """Workers that fail for reasons other than the data: exit code 1."""


class TrainingError(ModeRayError):
    """A training run that cannot continue, or that failed permanently: exit code 1."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class if it has none; for messages that quote a library's error."""
    return (str(error).splitlines() or [type(error).__name__])[0]
