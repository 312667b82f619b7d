"""The OpenAPI page: complete by its own word, and by schemathesis, which tries to prove it wrong on the running service."""

import subprocess
from typing import Any

import httpx
import pytest

from tests.service import ROOT, ServiceProcess

SCHEMATHESIS = ROOT / ".venv-clients" / "bin" / "schemathesis"
V2_MODEL = "/v2/models/{name}"
KEYED = ["/predict", "/predict/batch", "/model", "/v2", V2_MODEL, f"{V2_MODEL}/infer"]


@pytest.fixture
def openapi(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def test_every_operation_says_what_it_is(openapi: dict[str, Any]) -> None:
    for path, operations in openapi["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"] or path == "/", path
            assert all(answer["description"] for answer in operation["responses"].values()), path


@pytest.mark.parametrize("path", KEYED)
def test_what_asks_for_a_key_documents_the_refusal(openapi: dict[str, Any], path: str) -> None:
    assert all("401" in operation["responses"] for operation in openapi["paths"][path].values())


def test_every_reference_leads_somewhere(openapi: dict[str, Any]) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [found for value in node.values() for found in references(value)]
        return [found for value in node for found in references(value)] if isinstance(node, list) else []

    for reference in references(openapi):
        node: Any = openapi
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


@pytest.mark.skipif(not SCHEMATHESIS.exists(), reason="its pins clash with ours: make test-clients runs it")
def test_schemathesis_finds_nothing(service: ServiceProcess) -> None:
    command = [
        str(SCHEMATHESIS),
        "--config-file=tests/schemathesis.toml",
        "run",
        f"{service.url}/openapi.json",
        "--seed=1",
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr
