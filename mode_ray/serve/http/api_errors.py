"""One JSON form for all errors of the application."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from mode_ray.serve.service.errors import ServiceError

REQUEST_ID_STATE = "request_id"
_FIELD_NAMES_STATE = "field_names"

_CODES = {
    HTTPStatus.BAD_REQUEST: "bad_request",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "body_too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
}


def error_response(
    status: int,
    code: str,
    message: str,
    request_id: str,
    *,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error as an answer."""
    body = {"error": {"code": code, "message": message, "field": field, "request_id": request_id}}
    return JSONResponse(body, status, dict(headers or {}))


def name_fields(request: Request, names: Mapping[str, str]) -> None:
    """Set the names that fields have in the form of this request, for its errors.

    Args:
        request: The request.
        names: By the names of the fields in `/v1/classify` with JSON, which the service uses.
    """
    setattr(request.state, _FIELD_NAMES_STATE, names)


def service_error_response(
    error: ServiceError, request_id: str, names: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error of the service as an answer; `names` are those of the fields in the request."""
    retry = error.retry_after_seconds
    headers = {} if retry is None else {"Retry-After": str(retry)}
    field = error.field if error.field is None else (names or {}).get(error.field, error.field)
    return error_response(error.status, error.code, error.message, request_id, field=field, headers=headers)


def invalid_request(
    error: ValidationError | RequestValidationError, names: Mapping[str, str] | None = None
) -> ServiceError:
    """The first problem of a request that does not fit its schema. The message repeats no value of the request.

    Args:
        error: All problems.
        names: The names of fields in the request, if they differ from those of the schema.
    """
    problem = error.errors()[0]
    place = [part for part in problem["loc"] if part != "body"]
    if place and names:
        place[0] = names.get(str(place[0]), place[0])
    if problem["type"] in ("json_invalid", "json_type"):
        return ServiceError("invalid_json", "the body is not valid JSON", 400)
    more = len(error.errors()) - 1
    message = str(problem["msg"]).removeprefix("Value error, ")
    named = f"{_spoken(place)}: {message}" if place else message
    field = ".".join(map(str, place)) or None
    return ServiceError("invalid_request", f"{named}{f' (and {more} more)' if more else ''}", field=field)


def _spoken(place: Sequence[str | int]) -> str:
    """A place in a request for people, who count from 1: `images.0.base64` is "image 1, base64"."""
    spoken: list[str] = []
    for part in place:
        if isinstance(part, int) and spoken:
            spoken[-1] = f"{spoken[-1].removesuffix('s')} {part + 1}"
        else:
            spoken.append(str(part))
    return ", ".join(spoken)


def request_id_of(request: Request) -> str:
    """The id of a request, which the answer has too."""
    return str(getattr(request.state, REQUEST_ID_STATE, ""))


def install_error_handlers(app: FastAPI) -> None:
    """Answer all errors of the application in the same form."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        request_id = request_id_of(request)
        if isinstance(error, RequestValidationError):
            error = invalid_request(error)
        if isinstance(error, ServiceError):
            return service_error_response(error, request_id, getattr(request.state, _FIELD_NAMES_STATE, None))
        assert isinstance(error, HTTPException)  # noqa: S101  (registered for these three types only)
        code = _CODES.get(HTTPStatus(error.status_code), "error")
        return error_response(error.status_code, code, str(error.detail), request_id, headers=error.headers)

    for kind in (ServiceError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
