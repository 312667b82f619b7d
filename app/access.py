"""Around every request: its id in and out, one log line, its count and duration, and a 500 for what nobody caught.

A plain ASGI middleware, outermost but for CORS; the short road of app/shortcut.py does the same. What happens inside leaves
its trace in `scope["state"]["trace"]`, a RequestTrace.
"""

import logging
import random
import re
import time
from dataclasses import dataclass, field
from functools import cache

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.metrics import Metrics
from app.problem import problem_response
from app.service import Service

log = logging.getLogger("convserve.access")

PROBES = ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")  # logged only on level debug
UNMATCHED = "(unmatched)"
# What an answer has unless it says otherwise. Source: OWASP REST Security Cheat Sheet, "Security Headers".
DEFAULT_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
CLIENT_CLOSED_REQUEST = 499  # nginx's number, for log and metric alone
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def new_request_id() -> str:
    """128 random bits. Not of the system's generator: each call of that hands the interpreter to another thread."""
    return f"{random.getrandbits(128):032x}"


@dataclass(slots=True)
class RequestTrace:
    """What is known of one request, filled on its way."""

    request_id: str
    trace_id: str | None
    headers: dict[bytes, bytes]  # of equal names the first
    begun: float = field(default_factory=time.perf_counter)
    route: str | None = None  # the template, where Starlette did not route
    status: int = 0
    stages: dict[str, float] = field(default_factory=dict)  # stage to seconds
    fields: dict[str, object] = field(default_factory=dict)  # further fields of the log line

    def next(self) -> "RequestTrace":
        """Of a request with the same headers."""
        given = self.headers.get(b"x-request-id") == self.request_id.encode()
        return RequestTrace(self.request_id if given else new_request_id(), self.trace_id, self.headers)

    @classmethod
    def of(cls, scope: Scope) -> "RequestTrace":
        """Takes the client's `X-Request-ID` if it is a sane one, else makes one; `traceparent` as W3C Trace Context."""
        headers = dict(reversed(scope["headers"]))
        given = _REQUEST_ID.fullmatch(headers.get(b"x-request-id", b""))
        trace = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
        return cls(given[0].decode() if given else new_request_id(), trace[1].decode() if trace else None, headers)

    def server_timing(self) -> str:
        """The `Server-Timing` header: milliseconds by stage."""
        return ", ".join(f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in self.stages.items())


def trace_of(scope: Scope) -> RequestTrace:
    """The trace of the request that `scope` belongs to."""
    trace = scope["state"]["trace"]
    assert isinstance(trace, RequestTrace)
    return trace


def check_key(scope: Scope, service: Service) -> None:
    """Where keys are asked for, the log names the request's. Raises: UnauthorizedError when it brings none of them."""
    if service.keys is not None:
        trace_of(scope).fields["key"] = service.keys.check(Headers(scope=scope))


def refuse(error: Exception, scope: Scope, metrics: Metrics) -> Response:
    """The answer to a request that ends with `error`; counts it and notes its reason for the log."""
    trace = trace_of(scope)
    reason, response = problem_response(error, trace.request_id, scope["path"])
    trace.fields["reason"] = reason
    metrics.rejected.labels(reason).inc()
    return response


class Access:
    """What is kept of every request, whichever road it takes: its count and duration, its log line, its headers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # A look-up by labels takes longer than counting.
        self._requests = cache(service.metrics.requests.labels)
        self._request_seconds = cache(lambda route: service.metrics.tally(service.metrics.request_seconds.labels(route)))
        self._in_progress = 0
        service.metrics.requests_in_progress.set_function(lambda: self._in_progress)

    def begin(self, scope: Scope, last: RequestTrace | None = None) -> RequestTrace:
        """The trace of a new request, from now on also found by `trace_of`. `last` is of one with the same headers."""
        trace = last.next() if last else RequestTrace.of(scope)
        scope.setdefault("state", {})["trace"] = trace
        self._in_progress += 1
        return trace

    def headers(self, trace: RequestTrace) -> list[tuple[bytes, bytes]]:
        """Those that every answer has, beside its own."""
        headers = [(b"x-request-id", trace.request_id.encode())]
        if trace.stages:
            headers.append((b"server-timing", trace.server_timing().encode()))
        if self._service.draining:
            headers.append((b"connection", b"close"))
        return headers

    def end(self, scope: Scope, trace: RequestTrace) -> None:
        """Counts and logs a request that is answered or whose client left."""
        seconds = time.perf_counter() - trace.begun
        self._in_progress -= 1
        self._service.limits.held.release(scope)
        route = trace.route or getattr(scope.get("route"), "path", UNMATCHED)
        self._requests(route, trace.status).inc()
        self._request_seconds(route).observe(seconds)
        level = logging.DEBUG if route in PROBES else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "request", extra={"fields": _fields(scope, trace, seconds)})


class AccessMiddleware:
    """See the module."""

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = self._access.begin(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                given = {name for name, _ in message.get("headers", ())}
                more = (one for one in DEFAULT_HEADERS if one[0] not in given)
                message = {**message, "headers": [*message.get("headers", ()), *self._access.headers(trace), *more]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            trace.status = CLIENT_CLOSED_REQUEST
        except Exception as error:
            _, response = problem_response(error, trace.request_id, scope["path"])
            if not trace.status:
                await response(scope, receive, send_with_headers)
        finally:
            self._access.end(scope, trace)


def _fields(scope: Scope, trace: RequestTrace, seconds: float) -> dict[str, object]:
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
    return fields | ({"trace_id": trace.trace_id} if trace.trace_id else {})
