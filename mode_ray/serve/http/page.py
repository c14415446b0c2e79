"""The web page of the service, and the run's atlas.

Scripts and styles are files of their own, so that the page's Content-Security-Policy can forbid everything else.
"""

from collections.abc import Callable

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from mode_ray.storage import Location

PAGE_POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# The atlas contains its style and its script. Files of a run directory are not trusted: in a sandbox the page has no
# origin, so that it can reach neither the API nor a token.
ATLAS_POLICY = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_routes(get_atlas: Callable[[], Location | None]) -> APIRouter:
    """The routes `/`, `/static/NAME` and `/atlas`.

    Args:
        get_atlas: Returns the file with the served run's atlas; None if no atlas was made.
    """
    router = APIRouter(include_in_schema=False)
    files = StaticFiles(packages=[("mode_ray.serve", "static")])

    @router.get("/")
    async def page(request: Request) -> Response:
        return await static("index.html", request)

    @router.get("/static/{name}")
    async def static(name: str, request: Request) -> Response:
        response = await files.get_response(name, request.scope)
        response.headers.update({"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"})
        return response

    @router.get("/atlas")
    def atlas() -> Response:
        location = get_atlas()
        try:
            text = None if location is None else location.read_text()
        except FileNotFoundError:
            text = None
        if text is None:
            raise HTTPException(404, "the run has no atlas: make it with `mode-ray atlas` and serve the run again")
        # Browsers do not show a sandboxed page that asks for a window of its own.
        headers = {"Content-Security-Policy": ATLAS_POLICY, "Cross-Origin-Opener-Policy": "unsafe-none"}
        return HTMLResponse(text, headers=headers)

    return router
