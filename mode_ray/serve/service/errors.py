"""Errors of the service; the HTTP layer turns them into answers."""

import traceback


class ServiceError(Exception):
    """A request that cannot be answered.

    Args:
        code: A fixed word for programs, for example `unknown_task`.
        message: One sentence for people.
        status: The HTTP status.
        field: The field of the request that is wrong.
        retry_after_seconds: When to try again, if that may help.
    """

    def __init__(
        self,
        code: str,
        message: str,
        status: int = 422,
        *,
        field: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.field = field
        self.retry_after_seconds = retry_after_seconds


def over_limit(what: str, found: int, limit: int, field: str, setting: str) -> ServiceError:
    """A request that exceeds a limit."""
    return ServiceError(
        "limit_exceeded", f"{found:,} {what}: at most {limit:,} are allowed (serve.limits.{setting})", 422, field=field
    )


def overloaded(message: str, retry_after_seconds: int = 1) -> ServiceError:
    """Too many requests at the same time."""
    return ServiceError("overloaded", message, 503, retry_after_seconds=retry_after_seconds)


def unavailable(message: str, retry_after_seconds: int = 2) -> ServiceError:
    """Something that the answer needs is down."""
    return ServiceError("unavailable", message, 503, retry_after_seconds=retry_after_seconds)


def where_it_failed(error: Exception) -> str:
    """Type and stack trace of an error, for the log, without its message, which may repeat the request."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"
