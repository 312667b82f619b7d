"""The client: against the real service, and against a server that answers as scripted where a service cannot be made to."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import orjson
import pytest

from app.client import BATCH_SIZE, AsyncClient, Client, Outcome, RequestError, Result
from tests.conftest import MAX_BODY_BYTES
from tests.models import colour_probabilities, png
from tests.service import ROOT, ServiceProcess

RED = png((255, 0, 0))
ANSWER = orjson.dumps(
    {
        "model": {"name": "m", "version": "1"},
        "predictions": [{"label": "red", "class_index": 0, "probability": 1.0}],
        "accepted": True,
        "request_id": "a",
    }
)
Script = list[tuple[int, dict[str, str], bytes]]


class ScriptedServer(ThreadingHTTPServer):
    """Answers one entry of the script after another, the last one for ever. `seen` are the deadlines that came, in ms."""

    def __init__(self, script: Script, seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.seconds = list(script), seconds
        self.seen: list[float] = []
        self.times: list[float] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append(float(self.headers["x-request-timeout-ms"]))
        self.server.times.append(time.monotonic())
        status, headers, body = self.server.script[0] if len(self.server.script) == 1 else self.server.script.pop(0)
        time.sleep(self.server.seconds)
        if not status:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def scripted(*script: tuple[int, dict[str, str], bytes], seconds: float = 0) -> Iterator[ScriptedServer]:
    server = ScriptedServer(list(script), seconds)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def ours(service: ServiceProcess) -> Iterator[Client]:
    with Client(service.url, trust_env=False) as client:
        yield client


def test_an_answer_is_typed(ours: Client) -> None:
    result = ours.predict(png((60, 200, 30)), top_k=2)
    assert [one.label for one in result.predictions] == ["green", "red"]
    assert result.predictions[0].probability == pytest.approx(colour_probabilities((60, 200, 30))[1], abs=1e-6)
    assert result.predictions[0].class_index == 1
    assert result.accepted
    assert result.request_id


def test_the_model_is_told(ours: Client) -> None:
    assert ours.model()["labels"] == ["red", "green", "blue"]


def test_a_bad_image_raises_what_the_service_says(ours: Client) -> None:
    with pytest.raises(RequestError, match="the PNG image is damaged") as caught:
        ours.predict(RED[:50])
    assert (caught.value.status, caught.value.reason) == (422, "undecodable_image")
    assert caught.value.request_id


def reds(outcomes: list[Outcome]) -> list[float]:
    """The probability of red, which tells the images apart."""
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    return [next(one.probability for one in result.predictions if one.label == "red") for result in results]


def test_a_batch_has_a_result_or_an_error_for_each_image_in_order(ours: Client) -> None:
    first, second, third = ours.predict_batch([RED, b"text", RED])
    assert isinstance(second, RequestError)
    assert (second.status, second.reason) == (415, "unsupported_image")
    assert reds([first, third]) == pytest.approx([colour_probabilities((255, 0, 0))[0]] * 2, abs=1e-6)


def test_a_batch_larger_than_the_service_takes_goes_in_parts(ours: Client) -> None:
    """The shared service takes 8 images at once."""
    images = [png((red, 0, 0)) for red in range(0, 250, 10)]
    given = reds(ours.predict_batch(images))
    assert given == pytest.approx([colour_probabilities((red, 0, 0))[0] for red in range(0, 250, 10)], abs=1e-6)


def test_an_image_larger_than_the_service_takes_is_that_images_error(ours: Client) -> None:
    first, second = ours.predict_batch([bytes(MAX_BODY_BYTES + 1), RED])
    assert isinstance(first, RequestError)
    assert first.status == 413
    assert isinstance(second, Result)


def test_many_images_come_in_order_and_only_those_under_way_are_taken(ours: Client) -> None:
    taken: list[int] = []
    counts: list[int] = []

    def images() -> Iterator[bytes]:
        for red in range(200):
            taken.append(red)
            yield png((red, 0, 0))

    outcomes = ours.predict_many(images(), concurrency=2, progress=counts.append)
    given = [next(outcomes)]
    assert len(taken) <= 3 * BATCH_SIZE
    given += outcomes
    assert reds(given) == pytest.approx([colour_probabilities((red, 0, 0))[0] for red in range(200)], abs=1e-6)
    assert counts[-1] == 200
    assert counts == sorted(counts)


def test_asyncio_has_the_same(service: ServiceProcess) -> None:
    async def ask() -> list[Outcome]:
        async with AsyncClient(service.url, trust_env=False) as client:
            assert (await client.model())["name"] == "colours"
            assert isinstance(await client.predict(RED), Result)
            return [outcome async for outcome in client.predict_many([RED, b"text"])]

    first, second = asyncio.run(ask())
    assert isinstance(first, Result)
    assert isinstance(second, RequestError)


def test_connections_are_used_again(service: ServiceProcess) -> None:
    connections: set[object] = set()

    async def note(response: httpx.Response) -> None:
        connections.add(response.extensions["network_stream"].get_extra_info("client_addr"))

    with Client(service.url, trust_env=False, event_hooks={"response": [note]}) as client:
        for _ in range(5):
            client.predict(RED)
    assert len(connections) == 1


@pytest.mark.parametrize("status", [0, 429, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with scripted((status, {}, b""), (200, {}, ANSWER)) as server, Client(server.url, trust_env=False) as client:
        assert client.predict(RED).request_id == "a"
    assert len(server.seen) == 2


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("retry_after", [lambda: "1", lambda: in_seconds(2)])
def test_nothing_is_sent_before_retry_after(retry_after: Callable[[], str]) -> None:
    with (
        scripted((503, {"retry-after": retry_after()}, b""), (200, {}, ANSWER)) as server,
        Client(server.url, trust_env=False) as client,
    ):
        client.predict(RED)
    assert server.times[1] - server.times[0] >= 0.95
    assert server.seen[1] <= server.seen[0] - 950


def test_a_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    begun = time.monotonic()
    with (
        scripted((503, {"retry-after": "60"}, b"")) as server,
        Client(server.url, trust_env=False) as client,
        pytest.raises(RequestError) as caught,
    ):
        client.predict(RED)
    assert caught.value.status == 503
    assert len(server.seen) == 1
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("status", [400, 401, 404, 415, 422, 500])
def test_what_would_fail_again_is_not_tried_again(status: int) -> None:
    with (
        scripted((status, {}, b"")) as server,
        Client(server.url, trust_env=False) as client,
        pytest.raises(RequestError, match=str(status)),
    ):
        client.predict(RED)
    assert len(server.seen) == 1


def test_the_services_own_504_is_not_tried_again() -> None:
    problem = orjson.dumps({"detail": "too late", "status": 504, "reason": "deadline_exceeded", "request_id": "x"})
    with (
        scripted((504, {"content-type": "application/problem+json"}, problem)) as server,
        Client(server.url, trust_env=False) as client,
        pytest.raises(RequestError, match="too late"),
    ):
        client.predict(RED)
    assert len(server.seen) == 1


def test_an_answer_that_never_comes_ends_with_the_deadline() -> None:
    begun = time.monotonic()
    with (
        scripted((200, {}, ANSWER), seconds=3) as server,
        Client(server.url, trust_env=False, timeout_seconds=0.2) as client,
        pytest.raises(RequestError, match="no answer"),
    ):
        client.predict(RED)
    assert time.monotonic() - begun < 5
    assert server.seen == pytest.approx([200], abs=50)


def test_attempts_are_bounded() -> None:
    with (
        scripted((502, {}, b"")) as server,
        Client(server.url, trust_env=False, max_attempts=3) as client,
        pytest.raises(RequestError) as caught,
    ):
        client.predict(RED)
    assert caught.value.status == 502
    assert len(server.seen) == 3


def test_no_service_at_all_is_said_in_one_sentence() -> None:
    with (
        Client("http://127.0.0.1:9", trust_env=False, max_attempts=2) as client,
        pytest.raises(RequestError, match="no answer: ") as caught,
    ):
        client.predict(RED)
    assert caught.value.status == 0


def test_an_address_that_is_none_is_not_tried_again() -> None:
    begun = time.monotonic()
    with Client("localhost:8000", trust_env=False) as client, pytest.raises(RequestError, match="no answer"):
        client.predict(RED)
    assert time.monotonic() - begun < 1


def test_the_client_loads_nothing_of_the_server() -> None:
    code = "import sys, app.client; print(*{name.partition('.')[0] for name in sys.modules}, *sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "httpx" in loaded
    assert not set(loaded) & {"fastapi", "uvicorn", "onnxruntime", "PIL", "numpy", "pydantic", "app.errors", "app.service"}
