"""Reads the data of an atlas page of version 0.1.0, which wrote no `summary.json`.

To be removed after one release, with its use in `summary`.
"""

import html.parser
import json
from typing import Any


def data_of_page(page: str) -> dict[str, Any] | None:
    """The data of an atlas page in the form of a summary; None if the text is not such a page.

    The page has no masses. Its sizes are used instead; they are equal unless assignments are priced. Captions that the
    page dropped to stay small are missing.
    """
    island = _Island()
    island.feed(page)
    try:
        data = json.loads("".join(island.parts))
        return {**data, "schema_version": 1, "clusters": {**data["clusters"], "mass": data["clusters"]["rows"]}}
    except (ValueError, KeyError, TypeError):
        return None


class _Island(html.parser.HTMLParser):
    """Collects the text of `<script type="application/json" id="data">`."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script" and dict(attrs).get("id") == "data"

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002  (a method of the base)
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.parts.append(data)
