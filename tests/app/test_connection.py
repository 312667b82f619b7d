"""What reaches the socket before it is a request: heads too large, too slow or no HTTP; TLS; and headers of every answer."""

import json
import os
import re
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from app.connection import MAX_HEAD_BYTES, MAX_HEADERS
from tests.conftest import BODY_TIMEOUT_MS
from tests.models import png
from tests.service import PATIENCE_SECONDS, ServiceProcess, serve

RED = png((255, 0, 0))
PLAIN = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def connect(service: ServiceProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_SECONDS)


def answer_to(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of all that comes until the service closes the connection."""
    received = b""
    try:
        while piece := connection.recv(2**16):
            received += piece
    except ConnectionResetError:  # it did not read all that was sent
        pass
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(one.split(": ", 1) for one in lines)
    return int(first.split()[1]), headers, body


def assert_refusal(answer: tuple[int, dict[str, str], bytes], status: int, reason: str) -> None:
    given, headers, body = answer
    assert (given, headers["content-type"], headers["connection"]) == (status, "application/problem+json", "close")
    problem = json.loads(body)
    assert (problem["status"], problem["reason"], problem["request_id"]) == (status, reason, headers["x-request-id"])
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


NO_HTTP = {
    "TLS to a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "HTTP/2 without a word": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "words": b"hello\r\n\r\n",
    "two lengths": b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a length and chunks": b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a line folded": b"GET /livez HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
    "a space before the colon": b"GET /livez HTTP/1.1\r\nContent-Length : 5\r\n\r\nhello",
    "a NUL in a header": b"GET /livez HTTP/1.1\r\nX: a\0b\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\n\r\n",
}


def test_a_body_that_its_answer_did_not_wait_for_is_read_no_longer_than_any_other(service: ServiceProcess) -> None:
    with connect(service) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nthe beginning")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 404")
        begun = time.monotonic()
        connection.sendall(PLAIN)  # to the service more of that body
        assert b"HTTP/1.1" not in b"".join(iter(lambda: connection.recv(2**16), b""))
        assert time.monotonic() - begun > 0.9 * BODY_TIMEOUT_MS / 1000


@pytest.mark.parametrize("kind", NO_HTTP)
def test_what_is_no_http_is_refused_as_a_problem(service: ServiceProcess, kind: str) -> None:
    with connect(service) as connection:
        connection.sendall(NO_HTTP[kind])
        assert_refusal(answer_to(connection), 400, "malformed_request")


@pytest.mark.parametrize(
    "more",
    [b"X: y\r\n" * MAX_HEADERS, b"X: " + b"y" * MAX_HEAD_BYTES, b"y" * MAX_HEAD_BYTES],
    ids=["many headers", "a long header", "a long name"],
)
def test_a_flood_of_headers_is_refused(service: ServiceProcess, more: bytes) -> None:
    before = service.metric("convserve_rejected_total", reason="head_too_large")
    with connect(service) as connection:
        connection.sendall(PLAIN[:-2] + more)
        connection.sendall(b"\r\n" * more.startswith(b"X: y\r"))
        assert_refusal(answer_to(connection), 431, "head_too_large")
    assert service.metric("convserve_rejected_total", reason="head_too_large") == before + 1


def test_as_many_headers_as_allowed_are_taken(service: ServiceProcess) -> None:
    with connect(service) as connection:
        connection.sendall(PLAIN[:-2] + b"X: y\r\n" * (MAX_HEADERS - 2) + b"Connection: close\r\n\r\n")
        assert answer_to(connection)[0] == 200


def test_trailers_without_end_are_refused(service: ServiceProcess) -> None:
    with connect(service) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: ")
        with pytest.raises(OSError):  # noqa: PT011 (reset or broken pipe)
            connection.sendall(b"y" * 2**26)


def test_a_head_that_comes_a_byte_at_a_time_is_cut_off_and_hinders_nobody(service: ServiceProcess) -> None:
    """Slow loris, 200 times."""
    begun = time.monotonic()
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(service)) for _ in range(200)]
        for connection in slow:
            connection.sendall(PLAIN[:-2] + b"X: ")
        while time.monotonic() - begun < BODY_TIMEOUT_MS / 1000 * 0.8:
            for connection in slow:
                connection.sendall(b"y")
            assert httpx.get(f"{service.url}/livez", trust_env=False).status_code == 200
        for connection in slow:
            assert_refusal(answer_to(connection), 408, "body_timeout")
    assert BODY_TIMEOUT_MS / 1000 - 0.1 < time.monotonic() - begun < BODY_TIMEOUT_MS / 1000 + 5


def test_a_head_in_pieces_is_read_and_its_connection_kept(service: ServiceProcess) -> None:
    with connect(service) as connection:
        for _ in range(2):
            for piece in (b"\r\n", PLAIN[:9], PLAIN[9:20], PLAIN[20:]):
                connection.sendall(piece)
                time.sleep(0.02)
            assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
        time.sleep(BODY_TIMEOUT_MS / 1000 + 0.2)
        connection.sendall(PLAIN)
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "path", ["/", "/playground.js", "/docs", "/health", "/metrics", "/model", "/nowhere", "/v2", "/predict"]
)
def test_every_answer_has_the_headers_of_security_and_tells_no_version(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == ("no-cache" if path in ("/", "/playground.js") else "no-store")
    assert "server" not in headers
    assert len(headers.get_list("content-security-policy")) == 1


def test_an_error_of_a_bug_tells_no_path_and_no_traceback(client: httpx.Client) -> None:
    answer = client.post("/predict", content=png((255, 255, 255)))  # the session fails on white
    assert answer.status_code == 500
    assert not re.search(r"Traceback|\.py|onnx|/(usr|home|work|app)|0x[0-9a-f]{6}", answer.text)


def test_other_origins_are_not_let_in_and_the_description_can_be_switched_off(colours: Path) -> None:
    with serve(model=colours, docs="false") as process, process.client() as client:
        answer = client.post("/predict", content=RED, headers={"origin": "https://elsewhere.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert client.options("/predict", headers={"origin": "https://a.example"}).status_code == 405
        assert [client.get(path).status_code for path in ("/docs", "/openapi.json", "/redoc")] == [404] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_it_speaks_tls_with_a_certificate_of_its_own(colours: Path, tmp_path: Path, workers: int) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", os.fspath(key), "-out", os.fspath(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    process = ServiceProcess(model=colours, tls_cert_file=certificate, tls_key_file=key, workers=workers)
    try:
        process.port = int(process.wait_for_text(re.compile(r"127\.0\.0\.1:(\d+)"))[1])
        trusted = ssl.create_default_context(cafile=os.fspath(certificate))
        with httpx.Client(base_url=f"https://127.0.0.1:{process.port}", verify=trusted, trust_env=False) as client:
            assert client.post("/predict", content=RED).json()["predictions"][0]["label"] == "red"
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{process.url}/livez", trust_env=False)
        with httpx.Client(base_url=f"https://127.0.0.1:{process.port}", verify=trusted, trust_env=False) as client:
            assert client.get("/livez").status_code == 200
    finally:
        process.close()
