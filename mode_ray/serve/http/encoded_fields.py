"""Fields of requests that clients write in several ways: images in base64, and the texts of OpenAI's clients."""

import base64
import binascii
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

_URL_SAFE = str.maketrans("-_", "+/")


def _image_bytes(value: object) -> object:
    """Bytes from base64: standard or URL-safe, with line breaks, without padding, or as a data URL."""
    if not isinstance(value, str):
        return value
    if value[:5].lower() == "data:":
        head, _, value = value.partition(",")
        if not head.lower().endswith(";base64"):
            raise ValueError("a data URL must contain base64: data:image/png;base64,…")
    elif "://" in value[:16]:
        raise ValueError("the server fetches no addresses: send the image itself, in base64")
    text = "".join(value.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None


def _listed_texts(value: object) -> object:
    """A list of texts from one text or several."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and any(isinstance(entry, int | list) for entry in value):
        raise ValueError(
            "token ids, but the server takes texts: its experts have another tokenizer. In LangChain, use "
            "OpenAIEmbeddings(check_embedding_ctx_length=False)"
        )
    return value


Base64Image = Annotated[
    bytes, BeforeValidator(_image_bytes), WithJsonSchema({"type": "string", "format": "base64", "minLength": 1})
]
InputTexts = Annotated[
    list[str],
    BeforeValidator(_listed_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
