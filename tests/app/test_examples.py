"""The examples and headers of the OpenAPI document are what services really answer.

`WRITE_EXAMPLES=1 python -m pytest tests/app/test_examples.py` writes app/examples.json anew.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app.openapi import EXAMPLES
from tests.app.test_service import wait_until_busy, wait_until_idle
from tests.models import png
from tests.service import ROOT, ServiceProcess, serve
from tests.shown import is_shown

SEVEN = (ROOT / "docs" / "images" / "seven.png").read_bytes()
REQUEST_ID = {"x-request-id": "c0ffee11-8a31"}
KEY = {"x-api-key": "a-key"}
# A refusal before the head is read has an id of its own.
OF_THE_MOMENT = {
    "instance",
    "request_id",
    "uptime_seconds",
    "estimated_wait_seconds",
    "retry_after_seconds",
    "threads",
    "service_version",
}
GETS = ("/health", "/livez", "/readyz", "/model", "/v2", "/v2/health/live", "/v2/health/ready")
V2 = "/v2/models/{name}"
MODEL = ROOT / "models" / "digits.onnx"
CHANGE = {"path": MODEL.name, "sha256": hashlib.sha256(MODEL.read_bytes()).hexdigest()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"tests sha256:{hashlib.sha256(KEY['x-api-key'].encode()).hexdigest()}\n")
    with serve(
        model=MODEL, api_keys_file=keys, admin_keys='["tests"]', body_timeout_ms=500, threads=1, drain_seconds=0
    ) as process:
        yield process


def infer_request(image: bytes) -> dict[str, Any]:
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(image).decode()]}
    return {"id": "42", "inputs": [tensor]}


def ask_for_answers(url: str) -> dict[str, dict[str, httpx.Response]]:
    """What goes well, by operation and status."""
    with httpx.Client(base_url=url, headers=REQUEST_ID | KEY, trust_env=False) as client:
        files = [("files", ("seven.png", SEVEN)), ("files", ("letter.txt", b"Dear Sir or Madam"))]
        return {
            **{f"get {path}": {"200": client.get(path)} for path in GETS},
            "post /predict": {"200": client.post("/predict", content=SEVEN, params={"top_k": 3})},
            "post /predict/batch": {"200": client.post("/predict/batch", files=files, params={"top_k": 1})},
            f"get {V2}": {"200": client.get("/v2/models/digits")},
            f"get {V2}/ready": {"200": client.get("/v2/models/digits/ready")},
            f"post {V2}/infer": {"200": client.post("/v2/models/digits/infer", json=infer_request(SEVEN))},
            "post /admin/model": {"200": client.post("/admin/model", json=CHANGE)},
        }


def ask_for_errors(digits: ServiceProcess, white: ServiceProcess, slow: ServiceProcess, is_v2: bool) -> list[httpx.Response]:
    """One answer of each status of an error, by a client that does all that is wrong."""

    def post(service: ServiceProcess, model: str, image: bytes, **headers: str) -> httpx.Response:
        path = f"/v2/models/{model}/infer" if is_v2 else "/predict"
        content = json.dumps(infer_request(image)).encode() if is_v2 and image else image
        with httpx.Client(base_url=service.url, headers=REQUEST_ID | headers, trust_env=False, timeout=30) as client:
            return client.post(path, content=content)

    wait_until_idle(slow)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post, slow, "colours", SEVEN) for _ in range(2)]
        wait_until_busy(slow, 2)
        overloaded = post(slow, "colours", SEVEN)
        assert [one.result().status_code for one in waiting] == [200, 200]
    return [
        post(digits, "digits", b"", **KEY),
        post(digits, "digits", SEVEN),
        *([post(digits, "other", SEVEN, **KEY)] if is_v2 else []),
        send_head(digits, 1000, is_v2),
        send_head(digits, 40_000_000, is_v2),
        post(digits, "digits", b"Dear Sir or Madam", **KEY),
        post(digits, "digits", SEVEN[:200], **KEY),
        post(white, "colours", png((255, 255, 255))),
        overloaded,
        post(slow, "colours", SEVEN, **{"x-request-timeout-ms": "20"}),
        *([] if is_v2 else [post(digits, "digits", SEVEN, **{f"x-{number}": "" for number in range(200)})]),
    ]


def send_head(service: ServiceProcess, length: int, is_v2: bool) -> httpx.Response:
    """A request whose body never comes."""
    connection = service.connection()
    connection.putrequest("POST", "/v2/models/digits/infer" if is_v2 else "/predict")
    for name, value in (REQUEST_ID | KEY | {"content-length": str(length)}).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())
    connection.close()
    return found


@pytest.fixture(scope="module")
def answers(
    digits: ServiceProcess, service: ServiceProcess, slow_service: ServiceProcess
) -> dict[str, dict[str, httpx.Response]]:
    """All of them, by the keys of the file of examples."""
    errors = {
        key: {str(one.status_code): one for one in ask_for_errors(digits, service, slow_service, key == "errors")}
        for key in ("problems", "errors")
    }
    return ask_for_answers(digits.url) | errors


def but_for_the_moment(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: "…" if key in OF_THE_MOMENT else but_for_the_moment(value) for key, value in node.items()}
    return [but_for_the_moment(one) for one in node] if isinstance(node, list) else node


def test_the_examples_are_what_the_service_answers(answers: dict[str, dict[str, httpx.Response]]) -> None:
    given = {key: {status: one.json() for status, one in by.items()} for key, by in answers.items()}
    if os.environ.get("WRITE_EXAMPLES"):
        image = base64.b64encode(SEVEN).decode()
        requests = {"post /predict": {"image": image}, f"post {V2}/infer": infer_request(SEVEN), "post /admin/model": CHANGE}
        written = {key: ({"request": requests[key]} if key in requests else {}) | by for key, by in given.items()}
        EXAMPLES.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    for key, by_status in shown.items():
        for status, example in by_status.items():
            if status != "request":
                answer = given[key][status]
                assert is_shown(but_for_the_moment(answer), but_for_the_moment(example)), f"{key} {status}: {answer}"


def test_every_documented_answer_has_its_headers_and_an_example(
    answers: dict[str, dict[str, httpx.Response]], digits: ServiceProcess
) -> None:
    document = httpx.get(f"{digits.url}/openapi.json", headers=KEY, trust_env=False).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                text = json.dumps(answer.get("content"))
                shared = "problems" if "problem+json" in text else "errors" if "/V2Error" in text else f"{method} {path}"
                found = answers.get(shared.replace("/versions/{version}", ""), {}).get(status)
                if found is None:
                    continue  # probes that fail
                optional = {"inference-header-content-length"}
                told = {name.lower() for name in answer["headers"]}
                assert told - optional <= found.headers.keys(), f"{path} {status}"
                assert any("example" in content for content in answer["content"].values()), f"{path} {status}"


def test_the_requests_shown_get_the_answers_shown(digits: ServiceProcess) -> None:
    shown = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    asked = {f"post {V2}/infer": "/v2/models/digits/infer", "post /predict": "/predict?top_k=3"}
    for key, path in asked.items():
        answer = httpx.post(digits.url + path, json=shown[key]["request"], headers=REQUEST_ID | KEY, trust_env=False)
        assert is_shown(answer.json(), shown[key]["200"])
