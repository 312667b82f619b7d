"""The short road of `POST /predict`: what takes it, and that connections stay in order whichever road a request takes."""

import http.client
import json
import re
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from app.shortcut import AT_ONCE_SECONDS
from tests.conftest import BODY_TIMEOUT_MS
from tests.models import png
from tests.service import ServiceProcess, serve

RED, BLUE = png((255, 0, 0)), png((0, 0, 255))


def request(image: bytes, *headers: str, target: str = "/predict", version: str = "1.1") -> bytes:
    lines = [f"POST {target} HTTP/{version}", "Host: x", f"Content-Length: {len(image)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + image


def talk(service: ServiceProcess, *pieces: bytes, pause_seconds: float = 0.0) -> bytes:
    """All that comes back for the pieces, until the service closes the connection."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_seconds)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


def labels(answers: bytes) -> list[str]:
    """The most probable label of each answer in the stream."""
    bodies = re.findall(rb"\r\n\r\n(\{.*?\})(?=HTTP/1.1|$)", answers, re.DOTALL)
    return [json.loads(body)["predictions"][0]["label"] for body in bodies]


@pytest.mark.parametrize("pause_seconds", [0.0, AT_ONCE_SECONDS / 4, AT_ONCE_SECONDS * 3])
def test_an_image_that_comes_in_pieces_is_answered_however_slow_they_are(service: ServiceProcess, pause_seconds: float) -> None:
    first, last = request(RED), request(BLUE, "Connection: close")
    pieces = [first[:10], first[10:-20], first[-20:], last]
    assert labels(talk(service, *pieces, pause_seconds=pause_seconds)) == ["red", "blue"]


def test_after_an_image_in_two_pieces_the_connection_is_kept_for_longer_than_a_body_may_take(service: ServiceProcess) -> None:
    image = request(RED)
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for pieces in ((image,), (image[:-20], image[-20:]), (image,)):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(AT_ONCE_SECONDS / 20)
            received = b""
            while not labels(received):
                more = connection.recv(2**16)
                assert more, "the connection was closed"
                received += more
            time.sleep(1.1 * BODY_TIMEOUT_MS / 1000)


def test_requests_sent_without_waiting_are_answered_in_their_order_by_whichever_road(service: ServiceProcess) -> None:
    """A plain `top_k` takes the short road; `explain`, a browser's origin and an old version of HTTP the long one."""
    requests = (
        request(RED),
        request(BLUE, target="/predict?explain=true"),
        request(RED, target="/predict?top_k=1"),
        request(BLUE, "Origin: https://elsewhere.example"),
        request(RED, version="1.0"),
    )
    answers = talk(service, b"".join(requests))
    assert labels(answers) == ["red", "blue", "red", "blue", "red"]
    assert answers.count(b"\r\nx-request-id: ") == len(requests)


def test_what_follows_a_request_on_its_connection_is_read_for_what_it_is(colours: Path) -> None:
    """Heads that differ in the length alone are not parsed anew: whatever else differs must be noticed."""
    large, image = png((0, 0, 255), size=(300, 200)), png((0, 255, 0), size=(9, 9))
    with (
        serve(model=colours, threads=1, max_body_bytes=len(large)) as service,
        socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection,
    ):

        def ask(*pieces: bytes) -> tuple[int, dict[str, Any]]:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(AT_ONCE_SECONDS / 20)
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status, json.loads(response.read())

        def label(*pieces: bytes) -> str:
            status, answer = ask(*pieces)
            assert status == 200
            return str(answer["predictions"][0]["label"])

        assert [label(request(one)) for one in (RED, BLUE, large, image)] == ["red", "blue", "blue", "green"]
        assert len(ask(request(RED, target="/predict?top_k=1"))[1]["predictions"]) == 1
        assert ask(request(RED, "X-Request-ID: other"))[1]["request_id"] == "other"
        assert ask(request(RED, "X-Request-ID: other"))[1]["request_id"] == "other"
        assert len({ask(request(RED))[1]["request_id"] for _ in range(3)}) == 3
        assert label(request(image)[:-30], request(image)[-30:]) == "green"
        assert label(b"\r\n" + request(BLUE)) == "blue"
        assert label(request(RED)) == "red"
        assert ask(request(large + b"x"))[0] == 413
        assert service.metric("convserve_requests_total", route="/predict", status="200") == 13


def test_bodies_that_come_at_once_are_held_like_all_others_and_given_back(colours: Path) -> None:
    """Clients that break off leave nothing; two that send half of what may be held leave no room for a third."""
    half = RED + bytes(2**19 - len(RED))
    with serve(model=colours, threads=1, max_body_bytes=2**20, max_queue_bytes=2**20) as service:
        for number in range(3):
            with socket.create_connection(("127.0.0.1", service.port), timeout=30) as broken_off:
                broken_off.sendall(request(half, f"X-Request-ID: broken-off-{number}")[:-1])
                time.sleep(AT_ONCE_SECONDS / 5)
            assert service.wait_for_line(request_id=f"broken-off-{number}")["status"] == 499
        with ExitStack() as stack:
            connections = [
                stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=30)) for _ in range(2)
            ]
            for connection in connections:
                connection.sendall(request(half, "Connection: close")[:-1])
            time.sleep(0.2)  # a third that is answered while they arrive would leave no room for the second
            end = time.monotonic() + 10  # until both have arrived
            while not talk(service, request(RED, "Connection: close")).startswith(b"HTTP/1.1 503"):
                assert time.monotonic() < end
            for connection in connections:
                connection.sendall(half[-1:])
                assert labels(b"".join(iter(lambda: connection.recv(2**16), b""))) == ["red"]  # noqa: B023 (called at once)


def test_a_client_that_leaves_at_once_is_noticed_at_once(slow_service: ServiceProcess) -> None:
    with socket.create_connection(("127.0.0.1", slow_service.port)) as connection:
        connection.sendall(request(RED, "X-Request-ID: left-at-once"))
        time.sleep(AT_ONCE_SECONDS / 4)
    line = slow_service.wait_for_line(request_id="left-at-once")
    assert line["status"] == 499
    assert line["milliseconds"] < 200  # its image takes 300


def test_a_proxy_on_this_machine_may_say_for_whom_it_asks(service: ServiceProcess) -> None:
    talk(service, request(RED, "X-Forwarded-For: 192.0.2.7", "X-Request-ID: by-proxy"), request(RED, "Connection: close"))
    assert service.wait_for_line(request_id="by-proxy")["client"] == "192.0.2.7"
