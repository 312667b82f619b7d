"""The playground: one page and its two files, read once; browsers are told to load nothing from elsewhere."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

FOLDER = Path(__file__).parent / "playground"
FILES = {"/": "text/html", "/playground.css": "text/css", "/playground.js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": POLICY, "cache-control": "no-cache"}


def playground_router() -> APIRouter:
    """The page at `/`, and what it loads."""
    router = APIRouter(include_in_schema=False)
    for path in FILES:
        router.add_api_route(path, _answer_file(path), methods=["GET", "HEAD"])
    return router


def _answer_file(path: str) -> Callable[[], Awaitable[Response]]:
    content = (FOLDER / (path[1:] or "index.html")).read_bytes()

    async def answer() -> Response:
        return Response(content, media_type=FILES[path], headers=HEADERS)

    return answer
