"""Reads a request from JSON with base64, from a multipart form, or from an image as the whole body."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_origin

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, ImmutableMultiDict, QueryParams, UploadFile
from starlette.exceptions import HTTPException

from mode_ray.config.serve import ServeLimits
from mode_ray.serve.http.api_errors import invalid_request, name_fields
from mode_ray.serve.http.schema import ImageData
from mode_ray.serve.service.errors import ServiceError

IMAGE_FIELD = "image"
_IMAGES = "images"
_NAMES_IN_A_FORM = {_IMAGES: IMAGE_FIELD}
_NAMES_WITH_AN_IMAGE = {_IMAGES: "body"}
_FIELDS_AT_MOST = 16
_PARSED_IN_PLACE_BYTES = 1 << 16

Model = TypeVar("Model", bound=BaseModel)


async def read_request(request: Request, model: type[Model], limits: ServeLimits) -> Model:
    """Read a request.

    Args:
        request: JSON; `multipart/form-data` with files `image` and the other fields by name, lists as repeated fields
            or one JSON list; or `image/…` with the fields as query parameters.
        model: The model of the request; images are its field `images`.
        limits: Bounds the number of fields and files.

    Raises:
        ServiceError: The request has another content type, or does not fit the model.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return await _from_json(await request.body(), model)
    if kind == "multipart/form-data":
        name_fields(request, _NAMES_IN_A_FORM)
        form = await _read_form(request, limits)
        try:
            images = [await file.read() for file in form.getlist(IMAGE_FIELD) if isinstance(file, UploadFile)]
            return _from_fields(form, images, model)
        finally:
            await form.close()
    if kind.startswith("image/") or kind == "application/octet-stream":
        name_fields(request, _NAMES_WITH_AN_IMAGE)
        return _from_fields(request.query_params, [await request.body()], model)
    raise ServiceError(
        "unsupported_media_type", "send application/json, multipart/form-data or an image (image/*)", 415
    )


async def _from_json(body: bytes, model: type[Model]) -> Model:
    try:
        if len(body) <= _PARSED_IN_PLACE_BYTES:
            return model.model_validate_json(body)
        return await asyncio.to_thread(model.model_validate_json, body)
    except ValidationError as error:
        raise invalid_request(error) from None


async def _read_form(request: Request, limits: ServeLimits) -> FormData:
    most_fields = limits.labels + limits.templates + limits.texts + _FIELDS_AT_MOST
    try:
        return await request.form(max_files=limits.images + 1, max_fields=most_fields, max_part_size=limits.body_bytes)
    except HTTPException as error:
        if "Too many files" not in str(error.detail):
            raise
        message = f"more than {limits.images} images: at most {limits.images} are allowed (serve.limits.images)"
        raise ServiceError("limit_exceeded", message, field=_IMAGES) from None


def _from_fields(
    fields: ImmutableMultiDict[str, str | UploadFile] | QueryParams, images: Sequence[bytes], model: type[Model]
) -> Model:
    """The request from the fields of a form, or of a query whose body is the image."""
    values: dict[str, Any] = {}
    if images:
        values[_IMAGES] = [ImageData.model_construct(base64=data) for data in images]
    is_form = isinstance(fields, FormData)
    for name in fields.keys():  # noqa: SIM118  (iteration repeats names)
        given = fields.getlist(name)
        _require_kind(name, given, is_form=is_form)
        if name == IMAGE_FIELD:
            continue
        field = model.model_fields.get(name)
        is_list = field is not None and get_origin(field.annotation) is list
        texts = [str(value) for value in given]
        values[name] = _listed(name, texts) if is_list else texts[-1]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid_request(error, _NAMES_IN_A_FORM) from None


def _require_kind(name: str, given: Sequence[str | UploadFile], *, is_form: bool) -> None:
    """Refuse a text as an image, and a file as a text."""
    wrong = None
    if not is_form:
        if name in (IMAGE_FIELD, _IMAGES):
            wrong = "the body is the image, so the query has none"
    elif name == _IMAGES:
        wrong = f"in a form, the files are called {IMAGE_FIELD}"
    elif name == IMAGE_FIELD and not all(isinstance(value, UploadFile) for value in given):
        wrong = "a text instead of a file: with curl, write -F image=@cat.jpg"
    elif name != IMAGE_FIELD and any(isinstance(value, UploadFile) for value in given):
        wrong = f"a file instead of a text: only {IMAGE_FIELD} takes files"
    if wrong:
        raise ServiceError("invalid_request", f"{name}: {wrong}", field=name)


def _listed(name: str, given: Sequence[str]) -> Sequence[object]:
    """The values of repeated fields, or of one field with a JSON list."""
    if len(given) != 1 or not given[0].lstrip().startswith("["):
        return given
    try:
        values = json.loads(given[0])
    except (ValueError, RecursionError):
        raise ServiceError("invalid_request", f"{name}: not a JSON list", field=name) from None
    return list(values)


def request_body(model: type[BaseModel]) -> Mapping[str, object]:
    """The three forms of a request, for the OpenAPI document."""
    fields = {name: field for name, field in model.model_json_schema()["properties"].items() if name != _IMAGES}
    for field in fields.values():
        field.pop("$ref", None)
    example = model.model_json_schema().get("examples", [{}])[0]
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {IMAGE_FIELD: {"type": "array", "items": file}, **fields}}
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": f"#/components/schemas/{model.__name__}"},
                "example": example,
            },
            "multipart/form-data": {"schema": form},
            "image/jpeg": {"schema": file},
        },
    }


def query_fields(model: type[BaseModel]) -> list[dict[str, object]]:
    """The query parameters of a request whose body is an image, for the OpenAPI document."""
    fields = model.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": field, "description": "if the body is an image"}
        for name, field in fields.items()
        if name != _IMAGES
    ]
