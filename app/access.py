"""Around every request: its id in and out, one log line, its count and duration, and a 500 for what nobody caught.

A plain ASGI middleware, outermost but for CORS. What happens inside leaves its trace in `scope["state"]["trace"]`, a
RequestTrace.
"""

import logging
import os
import re
import time
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problem import problem_response
from app.service import Service

log = logging.getLogger("convserve.access")

UNMATCHED = "(unmatched)"
CLIENT_CLOSED_REQUEST = 499  # nginx's number, for log and metric alone
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(slots=True)
class RequestTrace:
    """What is known of one request, filled on its way."""

    request_id: str
    trace_id: str | None = None
    begun: float = field(default_factory=time.perf_counter)
    status: int = 0
    stages: dict[str, float] = field(default_factory=dict)  # stage to seconds
    fields: dict[str, object] = field(default_factory=dict)  # further fields of the log line

    @classmethod
    def of(cls, headers: Headers) -> "RequestTrace":
        """Takes the client's `X-Request-ID` if it is a sane one, else makes one; `traceparent` as W3C Trace Context."""
        given = headers.get("x-request-id", "")
        trace = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
        request_id = given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        return cls(request_id, trace.group(1) if trace else None)

    def server_timing(self) -> str:
        """The `Server-Timing` header: milliseconds by stage."""
        return ", ".join(f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in self.stages.items())


def trace_of(scope: Scope) -> RequestTrace:
    """The trace of the request that `scope` belongs to."""
    trace = scope["state"]["trace"]
    assert isinstance(trace, RequestTrace)
    return trace


class AccessMiddleware:
    """See the module."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app = app
        self._service = service
        self._metrics = service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = RequestTrace.of(Headers(scope=scope))
        scope.setdefault("state", {})["trace"] = trace

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = trace.request_id
                headers.setdefault("cache-control", "no-store")
                if trace.stages:
                    headers["server-timing"] = trace.server_timing()
                if self._service.draining:
                    headers["connection"] = "close"
            await send(message)

        with self._metrics.requests_in_progress.track_inprogress():
            try:
                await self._app(scope, receive, send_with_headers)
            except ClientDisconnect:
                trace.status = CLIENT_CLOSED_REQUEST
            except Exception as error:
                _, response = problem_response(error, trace.request_id, scope["path"])
                if not trace.status:
                    await response(scope, receive, send_with_headers)
            finally:
                self._record(scope, trace)

    def _record(self, scope: Scope, trace: RequestTrace) -> None:
        seconds = time.perf_counter() - trace.begun
        route = getattr(scope.get("route"), "path", UNMATCHED)
        self._metrics.requests.labels(route, trace.status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        fields: dict[str, object] = {
            "request_id": trace.request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": trace.status,
            "milliseconds": round(seconds * 1000, 2),
            "client": scope["client"][0] if scope.get("client") else None,
            **{f"{stage}_milliseconds": round(value * 1000, 2) for stage, value in trace.stages.items()},
            **trace.fields,
        }
        if trace.trace_id:
            fields["trace_id"] = trace.trace_id
        is_probe = route in ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
        log.log(logging.DEBUG if is_probe else logging.INFO, "request", extra={"fields": fields})
