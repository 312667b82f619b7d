"""The short road of `POST /predict`: FastAPI's routing and validation take longer than a small model computes.

Ordinary requests are answered here: no query or a plain `top_k`, no deadline or a plain one, any form of body. All others,
also those whose parameters are wrong, take the road through FastAPI to the route of the same name. The answers are the same.
"""

import re

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access import check_key, refuse, trace_of
from app.body import read_image
from app.errors import ConvServeError
from app.routes import DEFAULT_TOP_K, predict_answer
from app.service import Service

PATH = "/predict"
_PLAIN_QUERY = re.compile(rb"(?:top_k=([1-9][0-9]{0,2}))?")
_PLAIN_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,8}")


class PredictShortcut:
    """ASGI middleware, inside AccessMiddleware."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        milliseconds = trace_of(scope).headers.get(b"x-request-timeout-ms")
        query = _PLAIN_QUERY.fullmatch(scope["query_string"])
        if query is None or not (milliseconds is None or _PLAIN_MILLISECONDS.fullmatch(milliseconds)):
            await self._app(scope, receive, send)
            return
        timeout_seconds = self._service.timeout_seconds(None if milliseconds is None else int(milliseconds))
        await self._predict(Request(scope, receive), send, int(query[1] or DEFAULT_TOP_K), timeout_seconds)

    async def _predict(self, request: Request, send: Send, top_k: int, timeout_seconds: float) -> None:
        service, trace = self._service, trace_of(request.scope)
        trace.route = PATH
        try:
            check_key(request, service)
            image = await read_image(request, service.limits)
            [outcome] = await service.classify([image], request.receive, timeout_seconds)
            if isinstance(outcome, BaseException):
                raise outcome
        except ConvServeError as error:
            await refuse(error, request.scope, service.metrics)(request.scope, request.receive, send)
            return
        body = predict_answer(service, outcome, top_k, trace)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
