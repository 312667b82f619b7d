"""A client of the service, async and sync: httpx and the standard library, nothing of the server.

Each call has one deadline, which the service is told as `X-Request-Timeout-Ms`. Classifying changes nothing, so what may go
well the next time (no connection, 429, 502, 503, a proxy's 504) is tried again while the deadline allows it: never before
the `Retry-After` that came, else after a pause that grows; both with jitter, so that clients do not come in step.
"""

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, Self, TypeVar

import httpx

BATCH_SIZE = 16
FIRST_PAUSE_SECONDS = 0.1
CONNECT_SECONDS = 5.0
GRACE_SECONDS = 1.0  # the service's own 504 says more than a wait that is broken off
OF_THE_IMAGE = (400, 413, 415, 422)  # statuses that no other time and no other neighbours in the batch would change

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and its calibrated probability."""

    label: str
    class_index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Result:
    """What the model says of one image, most probable class first; `accepted` is false for "none of these"."""

    predictions: tuple[Prediction, ...]
    accepted: bool
    request_id: str = ""


class RequestError(Exception):
    """A request or an image failed for good. `status` is 0 when no answer came; `reason` is the service's word for programs."""

    def __init__(self, detail: str, *, status: int = 0, reason: str = "", request_id: str = "", **_: object) -> None:
        super().__init__(detail)
        self.status, self.reason, self.request_id = status, reason, request_id


Outcome = Result | RequestError


class AsyncClient:
    """Asks the service at `url`, over connections that are kept. `options` are httpx.AsyncClient's: verify, proxy, limits."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_seconds: float = 30, max_attempts: int = 5, **options: Any
    ) -> None:
        headers = {"x-api-key": api_key} if api_key else {}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, **options)
        self._timeout_seconds = timeout_seconds
        self._max_attempts = max_attempts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def model(self) -> dict[str, Any]:
        """What `GET /model` says. Raises: RequestError, as every call does."""
        return await self._ask("GET", "/model")  # type: ignore[no-any-return]

    async def predict(self, image: bytes, *, top_k: int = 5) -> Result:
        """Classifies one encoded image."""
        answer = await self._ask("POST", "/predict", content=image, params={"top_k": top_k})
        return _result(answer, answer["request_id"])

    async def predict_batch(self, images: Sequence[bytes], *, top_k: int = 5) -> list[Outcome]:
        """Classifies images in one request, or in several if the service takes fewer: a result or an error each, in order."""
        files = [("files", ("image", image, "application/octet-stream")) for image in images]
        try:
            answer = await self._ask("POST", "/predict/batch", files=files, params={"top_k": top_k})
        except RequestError as error:
            if len(images) == 1 and error.status in OF_THE_IMAGE:
                return [error]
            if len(images) == 1 or error.status != 413:
                raise
            middle = len(images) // 2
            halves = [await self.predict_batch(half, top_k=top_k) for half in (images[:middle], images[middle:])]
            return halves[0] + halves[1]
        return [_outcome(one, answer["request_id"]) for one in answer["results"]]

    async def predict_many(
        self, images: Iterable[bytes], *, top_k: int = 5, concurrency: int = 4, progress: Callable[[int], None] | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """Classifies any number of images, in order, taking from `images` only what is under way.

        `progress` is called with the number of images answered so far.
        """
        source, done = iter(images), 0
        waiting: deque[asyncio.Task[list[Outcome]]] = deque()
        try:
            while True:
                while len(waiting) < concurrency and (batch := list(islice(source, BATCH_SIZE))):
                    waiting.append(asyncio.create_task(self.predict_batch(batch, top_k=top_k)))
                if not waiting:
                    return
                outcomes = await waiting[0]
                waiting.popleft()
                done += len(outcomes)
                if progress:
                    progress(done)
                for outcome in outcomes:
                    yield outcome
        finally:
            for task in waiting:
                task.cancel()

    async def _ask(self, method: str, path: str, **content: Any) -> Any:
        deadline = time.monotonic() + self._timeout_seconds
        for attempt in range(self._max_attempts):
            left = max(0.001, deadline - time.monotonic())
            headers = {"x-request-timeout-ms": f"{left * 1000:.3f}"}
            timeout = httpx.Timeout(left + GRACE_SECONDS, connect=min(left, CONNECT_SECONDS))
            try:
                response = await self._http.request(method, path, headers=headers, timeout=timeout, **content)
                if response.is_success:
                    return response.json()
                error, wait = _judge(response)
            except httpx.TransportError as broken:
                is_final = isinstance(broken, httpx.ReadTimeout | httpx.WriteTimeout | httpx.UnsupportedProtocol)
                error, wait = RequestError(f"no answer: {str(broken) or type(broken).__name__}"), None if is_final else 0.0
            pause = max(wait or 0.0, FIRST_PAUSE_SECONDS * 2**attempt) * random.uniform(1, 1.5)
            if wait is None or attempt + 1 == self._max_attempts or time.monotonic() + pause >= deadline:
                break
            await asyncio.sleep(pause)
        raise error


class Client:
    """The same for code that is not async, safe to share between threads: an AsyncClient on an event loop of its own."""

    def __init__(self, url: str, **options: Any) -> None:
        """`options` are AsyncClient's."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="client", daemon=True)
        self._thread.start()
        self._client = AsyncClient(url, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._client.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def model(self) -> dict[str, Any]:
        """See AsyncClient."""
        return self._wait(self._client.model())

    def predict(self, image: bytes, *, top_k: int = 5) -> Result:
        """See AsyncClient."""
        return self._wait(self._client.predict(image, top_k=top_k))

    def predict_batch(self, images: Sequence[bytes], *, top_k: int = 5) -> list[Outcome]:
        """See AsyncClient."""
        return self._wait(self._client.predict_batch(images, top_k=top_k))

    def predict_many(self, images: Iterable[bytes], **options: Any) -> Iterator[Outcome]:
        """See AsyncClient."""
        outcomes = self._client.predict_many(images, **options)
        try:
            while (outcome := self._wait(anext(outcomes, None))) is not None:
                yield outcome
        finally:
            self._wait(outcomes.aclose())

    def _wait(self, awaitable: Awaitable[T]) -> T:
        async def wait() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result()


def _judge(response: httpx.Response) -> tuple[RequestError, float | None]:
    """The error, and the seconds before which another attempt makes no sense; None if it never does."""
    is_ours = response.headers.get("content-type") == "application/problem+json"
    problem = response.json() if is_ours else {"detail": f"HTTP {response.status_code} {response.reason_phrase}"}
    passes = response.status_code in (429, 502, 503) or (response.status_code == 504 and not is_ours)
    return RequestError(**problem | {"status": response.status_code}), _retry_after(response) if passes else None


def _retry_after(response: httpx.Response) -> float:
    """Seconds, from either form of the header; 0 without one. Source: RFC 9110, 10.2.3."""
    value = response.headers.get("retry-after", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _result(one: dict[str, Any], request_id: str) -> Result:
    return Result(tuple(Prediction(**each) for each in one["predictions"]), one["accepted"], request_id)


def _outcome(one: dict[str, Any], request_id: str) -> Outcome:
    return RequestError(**one["problem"]) if "problem" in one else _result(one, request_id)
