"""API keys: asked for where the model answers, never by probes and metrics."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers

from app.errors import SettingsError, UnauthorizedError
from app.keys import ApiKeys
from tests.models import png
from tests.service import ServiceProcess, assert_problem, serve

KEYS_FILE = "# the shop's\nfirst-key\n\n  second-key  \n"
GUARDED = [("POST", "/predict"), ("POST", "/predict/batch"), ("GET", "/model")]
OPEN = ["/health", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"]
VALID = [
    {"x-api-key": "first-key"},
    {"X-API-Key": "second-key"},
    {"authorization": "Bearer first-key"},
    {"authorization": "bearer second-key"},
]
INVALID = [
    {},
    {"x-api-key": "third-key"},
    {"x-api-key": ""},
    {"x-api-key": "first-key2"},
    {"x-api-key": "# the shop's"},
    {"authorization": "Basic first-key"},
    {"authorization": "first-key"},
    {"authorization": "Bearer"},
    {"x-api-key": "wrong", "authorization": "Bearer wrong"},
]


@pytest.fixture(scope="module")
def guarded(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service with keys, that logs as text."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEYS_FILE)
    with serve(model=colours, api_keys_file=keys, log_format="text") as process:
        yield process


@pytest.fixture
def stranger(guarded: ServiceProcess) -> Iterator[httpx.Client]:
    with guarded.client() as client:
        yield client


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("headers", INVALID, ids=str)
def test_without_a_valid_key_the_answer_is_401(stranger: httpx.Client, method: str, path: str, headers: dict[str, str]) -> None:
    response = stranger.request(method, path, headers=headers)
    assert_problem(response, 401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "first-key" not in response.text


@pytest.mark.parametrize("headers", VALID, ids=str)
def test_any_key_of_the_file_opens_by_either_header(stranger: httpx.Client, headers: dict[str, str]) -> None:
    assert stranger.post("/predict", content=png((255, 0, 0)), headers=headers).status_code == 200


@pytest.mark.parametrize("path", OPEN)
def test_probes_metrics_and_documentation_ask_no_key(stranger: httpx.Client, path: str) -> None:
    assert stranger.get(path).status_code == 200


def test_the_log_as_text_has_one_readable_line_per_request_and_no_key(guarded: ServiceProcess, stranger: httpx.Client) -> None:
    stranger.get("/model", headers={"x-request-id": "readable", "x-api-key": "first-key"})
    guarded.wait_for_text(re.compile("request_id=readable"))
    [line] = [line for line in guarded.lines if "request_id=readable" in line]
    assert line[2] == ":"
    for field in ("INFO", "request", "method=GET", "path=/model", "status=200", "milliseconds="):
        assert field in line
    assert not any("first-key" in line for line in guarded.lines)


def test_a_request_cannot_forge_a_line_of_the_log(guarded: ServiceProcess, stranger: httpx.Client) -> None:
    stranger.get("/x%0A00:00:00%20INFO%20forged")
    guarded.wait_for_text(re.compile("INFO forged"))
    assert not any(line.startswith("00:00:00 INFO") for line in guarded.lines)


def test_a_key_may_be_any_text(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("schlüssel\n", encoding="utf-8")
    keys = ApiKeys.read(file)
    keys.check(Headers(raw=[(b"x-api-key", "schlüssel".encode())]))
    with pytest.raises(UnauthorizedError):
        keys.check(Headers(raw=[(b"x-api-key", b"schlussel")]))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot be read"), (b"", "holds no key"), (b"# none\n\n", "holds no key"), (b"\xff\xfe", "cannot be read")],
)
def test_a_file_that_gives_no_key_is_refused_in_one_sentence(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        ApiKeys.read(path)
    assert str(caught.value).startswith(f"CONVSERVE_API_KEYS_FILE={path} {sentence}")
