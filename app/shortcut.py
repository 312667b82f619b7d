"""The short road of `POST /predict`: the connection itself answers, without ASGI.

Ordinary requests are answered here: a raw image of ordinary size that comes at once, no query or a plain `top_k`, no deadline
or a plain one. ASGI, FastAPI's routing and validation would take longer than a small model computes. All others, also those
that are wrong, take the long road to the route of the same name. The answers are the same.
"""

import asyncio
import re
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from starlette.requests import ClientDisconnect
from starlette.types import Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.access import CLIENT_CLOSED_REQUEST, DEFAULT_HEADERS, Access, RequestTrace, check_key, refuse
from app.answers import DEFAULT_TOP_K, predict_answer
from app.body import is_raw
from app.connection import Connection
from app.engine import Answer
from app.errors import ConvServeError, DeadlineExceededError
from app.problem import problem_response
from app.service import Outcome

PATH = "/predict"
AT_ONCE_SECONDS = 0.02
_TARGET = re.compile(rb"/predict(?:\?top_k=([1-9][0-9]{0,2}))?")
_PLAIN_LENGTH = re.compile(rb"[1-9][0-9]{0,5}")
_PLAIN_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,8}")
_LONG_ROAD_HEADERS = {b"content-encoding", b"expect", b"origin", b"upgrade"}


@dataclass(slots=True)
class _Exchange:
    """A request on the short road; to uvicorn the connection's current cycle."""

    scope: Scope
    trace: RequestTrace
    top_k: int
    image: bytes
    error: Exception = field(default_factory=ClientDisconnect)  # why it was cancelled
    future: asyncio.Future[Answer] | None = None
    timer: asyncio.TimerHandle | None = None
    keep_alive: bool = True
    response_complete: bool = False
    disconnected: bool = False
    message_event: ClassVar[asyncio.Event] = asyncio.Event()  # nobody waits for it

    def cancel(self, error: Exception) -> None:
        if self.future is not None:
            self.error = error
            self.future.cancel()


class PredictProtocol(Connection):
    """A connection with the short road."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._access: Access = self.app_state["access"]
        self._coming: tuple[int, float] | None = None  # top_k and deadline of a request whose body comes
        self._chunks: list[bytes] = []
        self._exchange: _Exchange | None = None

    def _begin_request(self) -> None:
        self._coming = self._read_head()
        if self._coming is None:
            super()._begin_request()
        else:
            self.cycle = None  # type: ignore[assignment] # the one before is over

    def on_body(self, body: bytes) -> None:
        if self._coming is None:
            super().on_body(body)
        else:
            self._bytes_beside_body = 0
            self._chunks.append(body)

    def _end_request(self) -> None:
        if self._coming is None:
            super()._end_request()
            return
        self._disarm()
        top_k, timeout_seconds = self._coming
        image, self._coming = b"".join(self._chunks), None
        self._chunks.clear()
        self._begin(image, top_k, timeout_seconds)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._coming is not None and self._timer is None:
            self._arm(AT_ONCE_SECONDS, self._take_long_road)

    def shutdown(self) -> None:
        self._take_long_road()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._take_long_road()
        if self._exchange is not None:
            self._exchange.cancel(ClientDisconnect())
        super().connection_lost(exc)

    def _take_long_road(self) -> None:
        """What comes slowly is read there, under its limit of time."""
        if self._coming is not None:
            self._coming = None
            self._disarm()
            super()._begin_request()
            super().on_body(b"".join(self._chunks))
            self._chunks.clear()

    def _read_head(self) -> tuple[int, float] | None:
        """`top_k` and deadline of a request for the short road; None for others."""
        target = _TARGET.fullmatch(self.url)
        if target is None or self.parser.get_method() != b"POST":
            return None
        headers = dict(reversed(self.headers))
        length, milliseconds = headers.get(b"content-length", b""), headers.get(b"x-request-timeout-ms")
        ordinary = (
            _PLAIN_LENGTH.fullmatch(length)
            and int(length) <= self._service.limits.max_bytes
            and (milliseconds is None or _PLAIN_MILLISECONDS.fullmatch(milliseconds))
            and is_raw(headers.get(b"content-type", b"").decode("latin-1").lower())
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not headers.keys() & _LONG_ROAD_HEADERS
            and not (b"x-forwarded-for" in headers and self._trusts_client())
            and getattr(self.cycle, "response_complete", True)
            and not self.flow.write_paused
            and self._service.cache is None
            and self._service.metrics.tracer is None
        )
        if not ordinary:
            return None
        timeout_seconds = self._service.timeout_seconds(int(milliseconds) if milliseconds else None)
        return int(target[1] or DEFAULT_TOP_K), timeout_seconds

    def _trusts_client(self) -> bool:
        """The client may say for whom it asks, which uvicorn's middleware reads."""
        return (
            isinstance(self.app, ProxyHeadersMiddleware)
            and self.client is not None
            and self.client[0] in self.app.trusted_hosts
        )

    def _begin(self, image: bytes, top_k: int, timeout_seconds: float) -> None:
        scope: Any = self.scope
        scope |= {"method": "POST", "path": PATH}
        trace = self._access.begin(scope)
        trace.route = PATH
        self._exchange = self.cycle = exchange = _Exchange(scope, trace, top_k, image)  # type: ignore[assignment]
        try:
            check_key(scope, self._service)
            self._service.limits.held.hold(scope, len(image))
            [future] = self._service.engine.submit([image], deadline=time.monotonic() + timeout_seconds)
        except Exception as error:
            self._end(exchange, error)
            return
        exchange.timer = self.loop.call_later(
            timeout_seconds, lambda: exchange.cancel(DeadlineExceededError(f"no answer within {timeout_seconds:g} s"))
        )
        exchange.future = future
        future.add_done_callback(partial(self._settle, exchange))

    def _settle(self, exchange: _Exchange, future: asyncio.Future[Answer]) -> None:
        if exchange.timer is not None:
            exchange.timer.cancel()
        self._end(exchange, exchange.error if future.cancelled() else future.exception() or future.result())

    def _end(self, exchange: _Exchange, outcome: Outcome) -> None:
        trace, exchange.response_complete = exchange.trace, True
        if isinstance(outcome, ClientDisconnect):
            trace.status = CLIENT_CLOSED_REQUEST
        else:
            trace.status, headers, body = self._answer(exchange, outcome)
            head = (*self.server_state.default_headers, *headers, *DEFAULT_HEADERS, *self._access.headers(trace))
            self._write(trace.status, head, body)
        self._access.end(exchange.scope, trace)
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _answer(self, exchange: _Exchange, outcome: Outcome) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Status, headers and body."""
        try:
            if isinstance(outcome, BaseException):
                raise outcome
            self._service.observe([exchange.image], [outcome])
            body = predict_answer(outcome, exchange.top_k, exchange.trace)
            return 200, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))], body
        except ConvServeError as error:
            response = refuse(error, exchange.scope, self._service.metrics)
        except Exception as error:
            _, response = problem_response(error, exchange.trace.request_id, PATH)
        return response.status_code, response.raw_headers, bytes(response.body)
