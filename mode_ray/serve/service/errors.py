"""What a request can be refused for, as the service says it; the HTTP layer gives it a shape."""

import traceback


class ServiceError(Exception):
    """A request that cannot be answered.

    Args:
        code: A fixed word for programs, for example `unknown_task`.
        message: One sentence for people.
        status: The HTTP status that fits.
        field: What of the request it is about.
        retry_after_seconds: When to try again, where that may help.
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
    """A request that holds too much of something."""
    return ServiceError(
        "limit_exceeded", f"{found:,} {what}: at most {limit:,} are allowed (serve.limits.{setting})", 422, field=field
    )


def overloaded(message: str, retry_after_seconds: int = 1) -> ServiceError:
    """Too much is asked at the same time; later it may be answered."""
    return ServiceError("overloaded", message, 503, retry_after_seconds=retry_after_seconds)


def unavailable(message: str, retry_after_seconds: int = 2) -> ServiceError:
    """What is needed for the answer is down."""
    return ServiceError("unavailable", message, 503, retry_after_seconds=retry_after_seconds)


def where_it_failed(error: Exception) -> str:
    """A defect, for the logs: its kind and place without its message, which may repeat the request."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"
