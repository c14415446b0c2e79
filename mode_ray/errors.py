"""What can go wrong by the user's hand: every such error is one sentence that names the place and the mend."""

from typing import ClassVar


class ModeRayError(Exception):
    """An error that the command line shows as one line, without a stack trace."""

    exit_code: ClassVar[int] = 1


class UsageError(ModeRayError):
    """A wrong config, argument or run directory: exit code 2."""

    exit_code: ClassVar[int] = 2


class DataError(ModeRayError):
    """Input data that cannot be used: exit code 1. The message names the file, and the row or field."""

    exit_code: ClassVar[int] = 1


class WriteError(ModeRayError, OSError):
    """Output that cannot be written: exit code 1. An OSError too, which may pass when tried again."""

    exit_code: ClassVar[int] = 1


class WorkerError(ModeRayError):
    """Workers that cannot go on, for no fault of the data: exit code 1."""

    exit_code: ClassVar[int] = 1


class TrainingError(ModeRayError):
    """A training run that cannot go on, or runs that failed for good: exit code 1."""

    exit_code: ClassVar[int] = 1
