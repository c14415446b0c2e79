"""Captions inside JSON objects, as tars and JSON Lines hold them; the text is untrusted."""

import json
from collections.abc import Mapping
from typing import Any


def json_object(content: bytes) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        ValueError: It is something else, or nested too deeply.
    """
    try:
        values = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values


def field_captions(values: Mapping[str, Any], field_name: str) -> list[bytes | None]:
    """The captions in a field: a string or a list of strings; one None where it holds none.

    Lone surrogates stay in the bytes, so that `clean` finds them not to be UTF-8.
    """
    found = values.get(field_name)
    texts = found if isinstance(found, list) and found else [found]
    return [text.encode(errors="surrogatepass") if isinstance(text, str) else None for text in texts]
