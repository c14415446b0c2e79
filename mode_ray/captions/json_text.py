"""Captions from JSON objects, in tars and JSON Lines; the text is untrusted."""

import json
from collections.abc import Mapping
from typing import Any


def json_object(content: bytes) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        ValueError: Not a JSON object, or nested too deeply.
    """
    try:
        values = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values


def field_captions(values: Mapping[str, Any], field_name: str) -> list[bytes | None]:
    """The captions in a field, a string or a list of strings; a single None if there is no caption.

    Lone surrogates are kept in the bytes, so that `clean` refuses them as invalid UTF-8.
    """
    found = values.get(field_name)
    texts = found if isinstance(found, list) and found else [found]
    return [text.encode(errors="surrogatepass") if isinstance(text, str) else None for text in texts]
