"""Around every request: its id, its log line, its trace, and what a browser of another origin may see."""

import re
from typing import Any

import httpx
import pytest

from tests.conftest import ORIGIN
from tests.models import png
from tests.service import ServiceProcess

RED = png((255, 0, 0))
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize("given", ["order-42", "a", "A.b:c_d-9", "x" * 128])
def test_a_sane_request_id_comes_back(client: httpx.Client, given: str) -> None:
    response = client.post("/predict", content=RED, headers={"x-request-id": given})
    assert response.headers.get_list("x-request-id") == [given]
    assert response.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a;b", "<script>", 'a"b', "a\\nb", "ünïcode"])
def test_any_other_request_id_is_replaced(client: httpx.Client, given: str) -> None:
    response = client.post("/predict", content=RED, headers={b"x-request-id": given.encode()})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_each_request_gets_an_id_of_its_own(client: httpx.Client) -> None:
    paths = ("/livez", "/nothing", "/metrics", "/health", "/livez")
    assert len({client.get(path).headers["x-request-id"] for path in paths}) == len(paths)


def line_of(service: ServiceProcess, request_id: str) -> dict[str, Any]:
    return service.wait_for_line(request_id=request_id, message="request")


def test_a_request_leaves_one_line_with_what_matters(service: ServiceProcess, client: httpx.Client) -> None:
    client.post("/predict?top_k=1", content=RED, headers={"x-request-id": "one-line"})
    line = line_of(service, "one-line")
    assert (line["method"], line["path"], line["status"], line["client"]) == ("POST", "/predict", 200, "127.0.0.1")
    assert (line["level"], line["logger"]) == ("info", "convserve.access")
    stages = [line[f"{stage}_milliseconds"] for stage in ("decode", "queue", "infer")]
    assert 0 < sum(stages) <= line["milliseconds"]
    assert sum("one-line" in text for text in service.lines) == 1


def test_a_refused_request_logs_its_reason(service: ServiceProcess, client: httpx.Client) -> None:
    client.post("/predict", content=b"text", headers={"x-request-id": "refused"})
    line = line_of(service, "refused")
    assert (line["status"], line["reason"]) == (415, "unsupported_image")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probes_and_scrapes_are_logged_for_debugging_only(service: ServiceProcess, client: httpx.Client, path: str) -> None:
    client.get(path, headers={"x-request-id": f"probe{path[1:]}"})
    assert line_of(service, f"probe{path[1:]}")["level"] == "debug"


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (f"00-{TRACE_ID}-b7ad6b7169203331-01", TRACE_ID),
        (f"00-{TRACE_ID.upper()}-b7ad6b7169203331-01", None),
        (f"00-{TRACE_ID}-b7ad6b7169203331", None),
        ("nonsense", None),
    ],
)
def test_a_valid_traceparent_puts_the_trace_id_in_the_log(
    service: ServiceProcess, client: httpx.Client, traceparent: str, trace_id: str | None
) -> None:
    request_id = f"trace-{len(traceparent)}-{trace_id is None}"
    client.get("/health", headers={"traceparent": traceparent, "x-request-id": request_id})
    assert line_of(service, request_id).get("trace_id") == trace_id


def test_a_browser_of_a_known_origin_may_ask_and_read_the_headers(client: httpx.Client) -> None:
    preflight = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    allowed = client.options("/predict", headers=preflight)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert "x-api-key" in allowed.headers["access-control-allow-headers"]
    answer = client.post("/predict", content=RED, headers={"origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert exposed == {"x-request-id", "server-timing", "retry-after"}


@pytest.mark.parametrize("body", [b"text", b"", png((255, 255, 255))], ids=["415", "400", "500"])
def test_a_browser_can_read_problems_too(client: httpx.Client, body: bytes) -> None:
    response = client.post("/predict", content=body, headers={"origin": ORIGIN})
    assert response.status_code >= 400
    assert response.headers["access-control-allow-origin"] == ORIGIN


def test_a_browser_of_another_origin_may_not(client: httpx.Client) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert client.options("/predict", headers=headers).status_code == 400
    answer = client.post("/predict", content=RED, headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
