"""The short road of `POST /predict`: the connection itself answers, without ASGI.

Ordinary requests are answered here: a raw image that comes at once, no query or a plain `top_k`, no deadline or a plain one.
ASGI, FastAPI's routing and validation would take longer than a small model computes. All others, also those that are wrong,
take the long road to the route of the same name. The answers are the same. A head like the one before is not even parsed.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from starlette.requests import ClientDisconnect
from starlette.types import Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.access import CLIENT_CLOSED_REQUEST, Access, RequestTrace, check_key, refuse
from app.answers import DEFAULT_TOP_K, predict_answer
from app.body import is_raw
from app.connection import Connection
from app.errors import ConvServeError, DeadlineExceededError, OverloadedError
from app.problem import problem_response
from app.service import Outcome

log = logging.getLogger("convserve")

PATH = "/predict"
AT_ONCE_SECONDS = 0.05
_TARGET = re.compile(rb"/predict(?:\?top_k=([1-9][0-9]{0,2}))?")
_LENGTH_LINE = re.compile(rb"\r\ncontent-length: ?([0-9]+)\r\n", re.IGNORECASE)
_PLAIN_LENGTH = re.compile(rb"[1-9][0-9]{0,7}")
_PLAIN_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,8}")
_LONG_ROAD_HEADERS = {b"content-encoding", b"expect", b"origin", b"upgrade"}


@dataclass(slots=True, eq=False)
class _Exchange:
    """A request on the short road: to the engine a slot, to uvicorn the connection's current cycle."""

    scope: Scope
    trace: RequestTrace
    top_k: int
    image: bytes
    end: Callable[["_Exchange", Outcome], None]
    timer: asyncio.TimerHandle | None = None
    keep_alive: bool = True
    response_complete: bool = False
    disconnected: bool = False
    message_event: ClassVar[asyncio.Event] = asyncio.Event()  # nobody waits for it

    def done(self) -> bool:
        return self.response_complete

    cancelled = done  # to be asked before there is an outcome

    def set_result(self, outcome: Outcome) -> None:
        """Answers, once."""
        if not self.response_complete:
            try:
                self.end(self, outcome)
            except Exception:  # the connection's, and not of its neighbours in the batch
                log.exception("an answer could not be written")

    set_exception = set_result


@dataclass(frozen=True, slots=True)
class _KnownHead:
    """A head that was read. The next one of its connection is mostly the same, but for the image's length between its parts."""

    before: bytes
    after: bytes
    scope: Scope
    trace: RequestTrace
    top_k: int
    timeout_seconds: float

    def image(self, data: bytes) -> bytes | None:
        """The body of `data` if it is this head and one whole body."""
        start = len(self.before)
        end = data.find(b"\r", start, start + 9)
        if end < 0 or not data.startswith(self.before) or not data.startswith(self.after, end):
            return None
        digits, begun = data[start:end], end + len(self.after)
        return data[begun:] if _PLAIN_LENGTH.fullmatch(digits) and int(digits) == len(data) - begun else None


class PredictProtocol(Connection):
    """A connection with the short road."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._access: Access = self.app_state["access"]
        self._coming: tuple[int, float] | None = None  # top_k and deadline of a request whose body comes
        self._chunks: list[bytes] = []
        self._exchange: _Exchange | None = None
        self._data = b""  # that was received last
        self._known: _KnownHead | None = None

    def _begin_request(self) -> None:
        self._coming = self._read_head()
        if self._coming is None:
            super()._begin_request()
        else:
            self.cycle = None  # type: ignore[assignment] # the one before is over

    def on_body(self, body: bytes) -> None:
        if self._coming is None:
            super().on_body(body)
            return
        self._bytes_beside_body = 0
        self._chunks.append(body)
        scope: Any = self.scope
        try:
            self._service.limits.held.hold(scope, len(body))
        except OverloadedError:
            self._take_long_road()  # where it is refused

    def _end_request(self) -> None:
        if self._coming is None:
            super()._end_request()
            return
        self._disarm()
        top_k, timeout_seconds = self._coming
        image, self._coming = b"".join(self._chunks), None
        self._chunks.clear()
        scope: Any = self.scope
        self._service.limits.held.release(scope)  # held as a whole from now on
        trace = self._access.begin(scope)
        self._remember(scope, trace, len(image), top_k, timeout_seconds)
        self._begin(scope, trace, image, top_k, timeout_seconds)

    def _remember(self, scope: Scope, trace: RequestTrace, length: int, top_k: int, timeout_seconds: float) -> None:
        """Keeps the head of a request that came as one piece."""
        head = self._data[:-length]
        line = _LENGTH_LINE.search(head)
        if line is not None and head.find(b"\r\n\r\n") == len(head) - 4 and int(line[1]) == length:
            before, after = head[: line.start(1)], head[line.end(1) :]
            self._known = _KnownHead(before, after, {**scope, "state": {}}, trace, top_k, timeout_seconds)

    def _recall(self, known: _KnownHead, data: bytes) -> bytes | None:
        """The image, if `data` is a request like the last one and the connection waits for one: nothing is left to parse."""
        last: object = self.cycle
        is_free = isinstance(last, _Exchange) and last.response_complete and not self._in_request
        image = known.image(data) if is_free and not self.flow.write_paused else None
        return image if image is not None and len(image) <= self._service.limits.max_bytes else None

    def data_received(self, data: bytes) -> None:
        known = self._known
        if known is not None and (image := self._recall(known, data)) is not None:
            self._unset_keepalive_if_required()
            self._disarm()
            scope = {**known.scope, "state": {}}
            self._begin(scope, self._access.begin(scope, known.trace), image, known.top_k, known.timeout_seconds)
            return
        self._data = data
        super().data_received(data)
        self._data = b""
        if self._coming is not None and self._timer is None:
            self._arm(AT_ONCE_SECONDS, self._take_long_road)

    def shutdown(self) -> None:
        self._take_long_road()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._take_long_road()
        if self._exchange is not None:
            self._exchange.set_result(ClientDisconnect())
        super().connection_lost(exc)

    def _take_long_road(self) -> None:
        """What comes slowly is read there, under its limit of time."""
        if self._coming is not None:
            self._coming = None
            self._disarm()
            scope: Any = self.scope
            self._service.limits.held.release(scope)
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

    def _begin(self, scope: Scope, trace: RequestTrace, image: bytes, top_k: int, timeout_seconds: float) -> None:
        scope["method"], scope["path"] = "POST", PATH
        trace.route = PATH
        self._exchange = self.cycle = exchange = _Exchange(scope, trace, top_k, image, self._end)  # type: ignore[assignment]
        try:
            check_key(scope, self._service)
            self._service.limits.held.hold(scope, len(image))
            self._service.engine.submit_into([exchange], [image], deadline=time.monotonic() + timeout_seconds)
        except Exception as error:
            self._end(exchange, error)
            return
        exchange.timer = self.loop.call_later(
            timeout_seconds, lambda: exchange.set_result(DeadlineExceededError(f"no answer within {timeout_seconds:g} s"))
        )

    def _end(self, exchange: _Exchange, outcome: Outcome) -> None:
        trace, exchange.response_complete = exchange.trace, True
        if exchange.timer is not None:
            exchange.timer.cancel()
        if isinstance(outcome, ClientDisconnect):
            trace.status = CLIENT_CLOSED_REQUEST
        else:
            trace.status, headers, body = self._answer(exchange, outcome)
            head = (*self.server_state.default_headers, *headers, *self._access.headers(trace))
            self._write(trace.status, head, body)
        exchange.image = b""  # the exchange stays until the next
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
