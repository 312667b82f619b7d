"""A connection as uvicorn reads it, within bounds that uvicorn does not set; its refusals are problem+json as all others.

A request's head must come whole within `CONVSERVE_BODY_TIMEOUT_MS`, and nothing beside bodies (trailers, say) grows without
end. Only what does not come in one piece runs a timer. Connections do not take the last file descriptors.
"""

import asyncio
import resource
import sys
from collections.abc import Callable, Iterable
from functools import partial

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.access import DEFAULT_HEADERS, new_request_id
from app.errors import BodyTimeoutError, ConvServeError, HeadTooLargeError, MalformedRequestError, OverloadedError
from app.problem import problem_response
from app.service import Service

# Longer than load balancers keep idle connections (60 s is common), so that they close them, not we: no lost race.
KEEP_ALIVE_SECONDS = 75
MAX_HEAD_BYTES = 2**16
MAX_HEADERS = 128
MAX_PIPELINED = 64  # requests that wait behind the one that is answered: 8 kB each, from 40 bytes
# File descriptors that no connection gets: the engine and the log need some, and libuv, once it has none, asks for the
# connection that it cannot accept again and again, with a whole core.
SPARE_DESCRIPTORS = 16
_DEFAULT_LINES = b"".join(b"%b: %b\r\n" % header for header in DEFAULT_HEADERS)


class Connection(HttpToolsProtocol):
    """See the module."""

    _in_head = False  # a head has begun and is not whole
    _in_request = False  # the same of head and body
    _bytes_beside_body = 0  # since the last head or piece of a body
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._service: Service = self.app_state["service"]
        self._arm(KEEP_ALIVE_SECONDS, transport.close)
        if _is_one_too_many(transport):
            self._refuse(OverloadedError("there are as many connections as the service can hold", retry_after_seconds=1))

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        had_begun = self._in_head
        self._bytes_beside_body += len(data)
        super().data_received(data)
        if self._bytes_beside_body > MAX_HEAD_BYTES:
            self._refuse(HeadTooLargeError(f"the request's head is larger than {MAX_HEAD_BYTES:,} bytes"))
        elif self._in_head and not had_begun:
            seconds = self._service.limits.timeout_seconds
            error = BodyTimeoutError(f"the request's head did not arrive within {seconds:g} s")
            self._arm(seconds, partial(self._refuse, error))
        elif getattr(self.cycle, "response_complete", False):
            self._wait_for_next()

    def _wait_for_next(self) -> None:
        """More came after an answer, so that uvicorn's timer is off: the body that the answer did not wait for, or its end."""
        if not self._in_request:
            self._arm(KEEP_ALIVE_SECONDS, self.transport.close)
        elif self._timer is None:
            self._arm(self._service.limits.timeout_seconds, self.transport.close)

    def on_message_begin(self) -> None:
        self._in_head = self._in_request = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS:
            raise HeadTooLargeError(f"the request has more than {MAX_HEADERS} headers")
        if len(self.pipeline) >= MAX_PIPELINED:
            raise MalformedRequestError(f"more than {MAX_PIPELINED} requests were sent without reading an answer")
        self._in_head, self._bytes_beside_body = False, 0
        self._disarm()
        self._begin_request()

    def _begin_request(self) -> None:
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bytes_beside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_request = False
        self._end_request()

    def _end_request(self) -> None:
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn's signature)
        why = getattr(sys.exception(), "__context__", None)  # what a method here raised: the parser says only that one did
        if isinstance(why, MemoryError):
            why = OverloadedError("there is no memory left to read the request", retry_after_seconds=1)
        self._refuse(why if isinstance(why, ConvServeError) else MalformedRequestError("what came is not an HTTP/1.1 request"))

    def _refuse(self, error: ConvServeError) -> None:
        if self.transport.is_closing():
            return
        request_id = new_request_id()
        reason, response = problem_response(error, request_id, "")
        self._service.metrics.rejected.labels(reason).inc()
        more = [(b"x-request-id", request_id.encode()), (b"connection", b"close")]
        self._write(response.status_code, [*response.raw_headers, *more], bytes(response.body))
        self.transport.close()

    def _write(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join((STATUS_LINE[status], *lines, _DEFAULT_LINES, b"\r\n", body)))

    def _arm(self, seconds: float, end: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, end)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _is_one_too_many(transport: asyncio.Transport) -> bool:
    """By its file descriptor: each is the lowest that is free."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptor: int = transport.get_extra_info("socket").fileno()
    return limit != resource.RLIM_INFINITY and descriptor >= limit - SPARE_DESCRIPTORS
