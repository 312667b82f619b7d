"""API keys: asked for where the model answers, by metrics and probes only where the operator says so."""

import hashlib
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers

from app.errors import SettingsError, UnauthorizedError
from app.keys import READ_SECONDS, ApiKeys
from tests.models import png
from tests.service import ROOT, ServiceProcess, assert_problem, serve


def line(name: str, key: str) -> str:
    """A line of the keys file."""
    return f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()}\n"


KEYS_FILE = f"# the shop's\n{line('shop', 'first-key')}\n  {line('lab@home', 'second-key')}"
GUARDED = [("POST", "/predict"), ("POST", "/predict/batch"), ("GET", "/model")]
PROBES = ["/health", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/colours/ready"]
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
    {"x-api-key": "shop"},
    {"x-api-key": hashlib.sha256(b"first-key").hexdigest()},
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


def test_the_log_as_text_has_one_readable_line_per_request_with_the_keys_name_and_no_key(
    guarded: ServiceProcess, stranger: httpx.Client
) -> None:
    stranger.get("/model", headers={"x-request-id": "readable", "x-api-key": "first-key"})
    guarded.wait_for_text(re.compile("request_id=readable"))
    [shown] = [line for line in guarded.lines if "request_id=readable" in line]
    assert shown[2] == ":"
    for field in ("INFO", "request", "method=GET", "path=/model", "status=200", "milliseconds=", "key=shop"):
        assert field in shown
    assert not any("first-key" in line for line in guarded.lines)


def test_a_request_cannot_forge_a_line_of_the_log(guarded: ServiceProcess, stranger: httpx.Client) -> None:
    stranger.get("/x%0A00:00:00%20INFO%20forged")
    guarded.wait_for_text(re.compile("INFO forged"))
    assert not any(line.startswith("00:00:00 INFO") for line in guarded.lines)


def test_a_key_may_be_any_text(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(line("umlaut", "schlüssel"))
    keys = ApiKeys(file)
    assert keys.check(Headers(raw=[(b"x-api-key", "schlüssel".encode())])) == "umlaut"
    with pytest.raises(UnauthorizedError):
        keys.check(Headers(raw=[(b"x-api-key", b"schlussel")]))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, " cannot be read: FileNotFoundError"),
        (b"", " holds no key"),
        (b"# none\n\n", " holds no key"),
        (b"\xff\xfe", " cannot be read"),
        (f"{line('a', 'b')}secret-key".encode(), ": line 2 is not NAME sha256:HEX"),
        (line("two words", "x").encode(), ": line 1 is not"),
        (line("a", "b").replace("sha256", "md5").encode(), ": line 1 is not"),
    ],
)
def test_a_file_that_gives_no_key_is_refused_in_one_sentence(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        ApiKeys(path)
    assert str(caught.value).startswith(f"CONVSERVE_API_KEYS_FILE={path}{sentence}")
    assert "secret-key" not in str(caught.value)


def test_a_changed_file_counts_within_seconds_and_a_broken_one_changes_nothing(tmp_path: Path, colours: Path) -> None:
    file, next_file = tmp_path / "keys", tmp_path / "next"

    def replace_by(content: str) -> None:
        next_file.write_text(content)
        next_file.replace(file)
        time.sleep(READ_SECONDS + 0.1)

    replace_by(line("old", "old-key"))
    with serve(model=colours, api_keys_file=file) as process, process.client() as client:

        def status(key: str) -> int:
            return client.get("/model", headers={"x-api-key": key}).status_code

        assert (status("old-key"), status("new-key")) == (200, 401)
        replace_by(line("new", "new-key"))
        assert (status("new-key"), status("old-key")) == (200, 401)
        replace_by("new-key-but-plain\n")
        assert (status("new-key"), status("new-key-but-plain")) == (200, 401)
        assert "the old ones hold" in process.wait_for_line(level="error")["message"]
        file.unlink()
        time.sleep(READ_SECONDS + 0.1)
        assert status("new-key") == 200
        assert not any("-key" in entry for entry in process.lines)


@pytest.mark.parametrize(("kind", "closed"), [("metrics", ["/metrics"]), ("all", ["/metrics", *PROBES])])
def test_metrics_and_probes_ask_for_a_key_where_the_operator_says_so(
    tmp_path: Path, colours: Path, kind: str, closed: list[str]
) -> None:
    (tmp_path / "keys").write_text(line("ops", "ops-key"))
    process = ServiceProcess(model=colours, api_keys_file=tmp_path / "keys", api_keys_for=kind)
    try:
        process.port = int(process.wait_for_text(re.compile(r"127\.0\.0\.1:(\d+)"))[1])
        with process.client() as client:
            for path in ["/metrics", *PROBES]:
                assert client.get(path).status_code == (401 if path in closed else 200), path
                assert client.get(path, headers={"authorization": "Bearer ops-key"}).status_code == 200
    finally:
        process.close()


def test_the_documents_command_makes_a_key_and_its_line(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    command = re.search(r"^python3 -c '.*'$", text, re.MULTILINE)
    assert command
    made = subprocess.run(shlex.split(command[0]), capture_output=True, text=True, check=True).stdout.splitlines()
    (tmp_path / "keys").write_text(made[1])
    assert len(made[0]) == 43
    assert ApiKeys(tmp_path / "keys").check(Headers({"x-api-key": made[0]})) == "shop"
