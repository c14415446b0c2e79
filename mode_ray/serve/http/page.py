"""The page to try the ensemble by hand: its files, and the run's atlas beside them.

Scripts and styles are files of their own, so that the page needs nothing but its own origin, and its
Content-Security-Policy can say so.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse

from mode_ray.storage import Location

INDEX = "index.html"
PAGE_POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# The atlas has its style inside, and names the hash of its own script in a policy of its own. What lies in a run
# directory is not the server's word: in a sandbox it is of no origin, and reaches neither the API nor a token.
ATLAS_POLICY = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page.

    Attributes:
        content: Its bytes.
        media_type: As the browser is told.
        tag: Its entity tag, by content: a browser asks again and again, and gets it once.
    """

    content: bytes
    media_type: str
    tag: str


def page_files() -> dict[str, PageFile]:
    """All files of the page by name, as installed."""
    found = {}
    for file in resources.files("mode_ray.serve").joinpath("static").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _MEDIA_TYPES:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
            found[file.name] = PageFile(content, _MEDIA_TYPES[suffix], tag)
    return found


def page_routes(get_atlas: Callable[[], Location | None]) -> APIRouter:
    """The routes `/`, `/static/NAME` and `/atlas`.

    Args:
        get_atlas: Returns where the served run's atlas lies; None where none was made.
    """
    router = APIRouter(include_in_schema=False)
    files: Mapping[str, PageFile] = page_files()

    @router.get("/")
    async def page(request: Request) -> Response:
        return _file_response(files[INDEX], request)

    @router.get("/static/{name}")
    async def static(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404, "the page has no such file")
        return _file_response(files[name], request)

    @router.get("/atlas")
    def atlas() -> Response:
        location = get_atlas()
        try:
            text = None if location is None else location.read_text()
        except FileNotFoundError:
            text = None
        if text is None:
            raise HTTPException(404, "the run has no atlas: make it with `mode-ray atlas` and serve the run again")
        # Browsers refuse to show a page in a sandbox that also asks for a window of its own.
        headers = {"Content-Security-Policy": ATLAS_POLICY, "Cross-Origin-Opener-Policy": "unsafe-none"}
        return HTMLResponse(text, headers=headers)

    return router


def _file_response(file: PageFile, request: Request) -> Response:
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache", "ETag": file.tag}
    known = request.headers.get("If-None-Match", "")
    if file.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
