"""Bodies that are too large, too slow, broken or of the wrong kind: each answers its own problem, and the service is well."""

import base64
import http.client
import io
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from benchmarks.faults.proc import status_of
from tests.conftest import BODY_TIMEOUT_MS, MAX_BODY_BYTES, MAX_IMAGES_PER_REQUEST
from tests.models import png
from tests.service import ServiceProcess, assert_problem, serve

PICTURE = png((255, 0, 0))
MEBIBYTE = b"\0" * 2**20
FORM_TYPE = "multipart/form-data; boundary=cut"


def part(name: str, content: bytes = PICTURE, filename: str | None = "x.png") -> bytes:
    """One part of a form with the boundary `cut`."""
    extra = "" if filename is None else f'; filename="{filename}"'
    return f'--cut\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes, content_type: str = FORM_TYPE, end: bytes = b"--cut--\r\n") -> dict[str, Any]:
    """What httpx needs to send these parts."""
    return {"content": b"".join(parts) + end, "headers": {"content-type": content_type}}


def json_body(text: str) -> dict[str, Any]:
    return {"content": text, "headers": {"content-type": "application/json"}}


def jpeg(side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 90).save(file, "JPEG")
    return file.getvalue()


def bomb(side: int = 40_000) -> bytes:
    """A PNG of a few bytes whose header promises 1.6 gigapixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + PICTURE[33:]


MALFORMED: dict[str, dict[str, Any]] = {
    "nothing": {"content": b""},
    "an empty form": form(end=b""),
    "an empty JSON body": json_body(""),
    "a form without a boundary": form(part("file"), content_type="multipart/form-data"),
    "a form with another boundary": form(part("file"), content_type="multipart/form-data; boundary=other"),
    "a form without the field": form(part("picture")),
    "a form whose field is no file": form(part("file", b"text", filename=None)),
    "a form with two files": form(part("file"), part("file")),
    "a form cut in a part": form(part("file")[:-20], end=b""),
    "a form cut in a header": form(part("file")[:30], end=b""),
    "a form without its end": form(part("file"), end=b""),
    "a form with thousands of fields": form(
        *[part(f"field{number}", b"1", filename=None) for number in range(5000)], part("file")
    ),
    "a form with a part without a name": form(b"--cut\r\nContent-Type: image/png\r\n\r\n" + PICTURE + b"\r\n"),
    "JSON that ends early": json_body('{"image": "aGVsbG8='),
    "JSON of another kind": json_body('["aGVsbG8="]'),
    "JSON without the image": json_body("{}"),
    "JSON with a number": json_body('{"image": 5}'),
    "JSON with an unknown key": json_body('{"image": "aGVsbG8=", "top_k": 3}'),
    "JSON that is not UTF-8": {"content": b'{"image": "\xff"}', "headers": {"content-type": "application/json"}},
    "JSON nested a thousandfold": json_body('{"image":' + "[" * 1000 + "]" * 1000 + "}"),
    "text that is not base64": json_body('{"image": "what a lovely day!"}'),
    "base64 of the wrong length": json_body('{"image": "aGVsbG8"}'),
    "base64 that is not ASCII": json_body('{"image": "aGVsbG8é"}'),
    "an empty image": json_body('{"image": ""}'),
    "an empty data URL": json_body('{"image": "data:image/png;base64,"}'),
}


@pytest.mark.parametrize("body", MALFORMED)
def test_a_malformed_body_answers_400(client: httpx.Client, body: str) -> None:
    assert_problem(client.post("/predict", **MALFORMED[body]), 400, "malformed_request")


@pytest.mark.parametrize("body", [b"hello, world", b"<svg/>", b"%PDF-1.7", b"\0" * 100, b"\x89PN"])
def test_what_is_no_image_answers_415_whatever_it_is_called(client: httpx.Client, body: bytes) -> None:
    response = client.post("/predict", content=body, headers={"content-type": "image/png"})
    assert "PNG" in assert_problem(response, 415, "unsupported_image").detail


@pytest.mark.parametrize("content_type", ["text/plain", "video/mp4", "application/xml", "multipart/mixed", "nonsense"])
def test_a_wrong_content_type_answers_415(client: httpx.Client, content_type: str) -> None:
    response = client.post("/predict", content=PICTURE, headers={"content-type": content_type})
    assert content_type in assert_problem(response, 415, "unsupported_image").detail


@pytest.mark.parametrize("coding", ["gzip", "br", "GZIP, identity"])
def test_a_compressed_body_answers_415(client: httpx.Client, coding: str) -> None:
    response = client.post("/predict", content=PICTURE, headers={"content-encoding": coding})
    assert_problem(response, 415, "unsupported_image")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_a_truncated_image_answers_422(client: httpx.Client, kept: float) -> None:
    picture = jpeg()
    response = client.post("/predict", content=picture[: int(len(picture) * kept)])
    assert "JPEG" in assert_problem(response, 422, "undecodable_image").detail


def test_a_decompression_bomb_answers_413(client: httpx.Client) -> None:
    assert "40000 × 40000" in assert_problem(client.post("/predict", content=bomb()), 413, "too_large").detail


def test_a_body_of_exactly_the_limit_is_taken(client: httpx.Client) -> None:
    response = client.post("/predict", content=PICTURE.ljust(MAX_BODY_BYTES, b"\0"))
    assert response.json()["predictions"][0]["label"] == "red"


def test_a_body_of_one_byte_more_answers_413(client: httpx.Client) -> None:
    response = client.post("/predict", content=PICTURE.ljust(MAX_BODY_BYTES + 1, b"\0"))
    assert f"{MAX_BODY_BYTES:,}" in assert_problem(response, 413, "too_large").detail


@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413)])
def test_a_body_of_unknown_length_has_the_same_limit(client: httpx.Client, extra: int, status: int) -> None:
    def pieces() -> Iterator[bytes]:
        yield PICTURE.ljust(2**20, b"\0")
        yield from [MEBIBYTE] * (MAX_BODY_BYTES // 2**20 - 1)
        yield b"\0" * extra

    assert client.post("/predict", content=pieces()).status_code == status


def test_a_promise_of_too_many_bytes_is_refused_before_they_are_sent(service: ServiceProcess) -> None:
    connection = service.connection()
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Length", str(10**15))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_300_megabytes_are_refused_while_they_come_and_never_held(service: ServiceProcess) -> None:
    connection = service.connection()
    connection.putrequest("POST", "/predict")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    before, peak = status_of(service.pid, "VmRSS"), 0
    for _ in range(300):
        connection.send(b"100000\r\n" + MEBIBYTE + b"\r\n")
        peak = max(peak, status_of(service.pid, "VmRSS"))
    connection.send(b"0\r\n\r\n")
    assert drained(connection).status == 413
    assert peak - before < 2.5 * MAX_BODY_BYTES
    connection.request("POST", "/predict", PICTURE)
    assert drained(connection).status == 200  # on the same connection
    connection.close()


def drained(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    response = connection.getresponse()
    response.read()
    return response


def test_a_body_that_stops_coming_answers_408(service: ServiceProcess) -> None:
    connection = service.connection()
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(PICTURE[:20])
    begun = time.monotonic()
    response = connection.getresponse()
    assert response.status == 408
    assert response.headers["connection"] == "close"  # what comes next would be read as the rest of this body
    assert b'"reason":"body_timeout"' in response.read()
    assert BODY_TIMEOUT_MS / 1000 - 0.1 < time.monotonic() - begun < 10
    connection.close()


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_more_files_than_allowed_answer_413(client: httpx.Client, path: str) -> None:
    response = client.post(path, **form(*[part("files")] * (MAX_IMAGES_PER_REQUEST + 1)))
    assert str(MAX_IMAGES_PER_REQUEST) in assert_problem(response, 413, "too_large").detail


def test_a_client_that_leaves_while_it_sends_is_logged_as_499(service: ServiceProcess, client: httpx.Client) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Request-ID: left-early\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head + PICTURE[:20])
        time.sleep(0.1)
    assert service.wait_for_line(request_id="left-early")["status"] == 499
    assert client.post("/predict", content=PICTURE).status_code == 200


def test_a_file_larger_than_a_mebibyte_stays_in_memory_and_is_read_whole(client: httpx.Client) -> None:
    padded = PICTURE.ljust(5 * 2**20, b"\0")
    for body in (form(part("file", padded)), {"json": {"image": base64.b64encode(padded).decode()}}):
        assert client.post("/predict", **body).json()["predictions"][0]["label"] == "red"


def test_bodies_held_by_others_are_bounded_and_given_back(colours: Path) -> None:
    """Half a body of somebody else's is held: there is no room for more until he leaves."""
    with serve(model=colours, max_body_bytes=2**20, max_queue_bytes=2**20) as process, process.client() as client:
        connection = process.connection()
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", str(2**20))
        connection.endheaders(MEBIBYTE[:-1])
        time.sleep(0.5)  # to be read
        problem = assert_problem(client.post("/predict", content=PICTURE), 503, "overloaded")
        assert problem.retry_after_seconds is not None
        connection.close()
        while client.post("/predict", content=PICTURE).status_code == 503:
            pass
        assert client.post("/predict", content=PICTURE.ljust(2**20, b"\0")).status_code == 200
