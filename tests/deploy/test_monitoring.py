"""The dashboard and the alert rules, asked of a real Prometheus that scrapes a real service."""

import json
import math
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.tools import K8S, tool
from tests.service import PATIENCE_SECONDS, ROOT, free_ports, serve

MONITORING = K8S / "components" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Prometheus's address, when it has scraped a service that answers and refuses."""
    program = tool("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    [port] = free_ports(1)
    with serve(model=ROOT / "models/digits.onnx") as service:
        configuration = yaml.safe_load((ROOT / "docs/compose/prometheus.yml").read_text())
        configuration["global"]["scrape_interval"] = "1s"
        configuration["rule_files"] = [str(MONITORING / "alerts.yaml")]
        del configuration["scrape_configs"][0]["dns_sd_configs"]
        configuration["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{service.port}"]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                _exercise(service.url, f"http://127.0.0.1:{port}")
                yield f"http://127.0.0.1:{port}"
            finally:
                process.kill()


def _exercise(url: str, prometheus: str) -> None:
    """Answers, refusals and faults, until Prometheus has seen five seconds of them, and enough images to speak of drift."""
    image = (ROOT / "docs/images/seven.png").read_bytes()
    deadline = time.monotonic() + PATIENCE_SECONDS
    with httpx.Client(base_url=url, trust_env=False) as client:
        while not ask(prometheus, "count_over_time(convserve_stage_seconds_count[1m]) >= 5 and on () convserve_drift_psi"):
            assert time.monotonic() < deadline, "Prometheus never scraped the service"
            assert client.post("/predict", content=image).status_code == 200
            assert client.post("/predict", content=b"text").status_code == 415
            time.sleep(0.05)


def ask(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """The answer to a query, empty while Prometheus is not there."""
    try:
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}, trust_env=False)
    except httpx.TransportError:
        return []
    assert answer.status_code in (200, 503), answer.text
    return list(answer.json()["data"]["result"]) if answer.status_code == 200 else []


@pytest.mark.parametrize("title", QUERIES)
def test_every_query_of_the_dashboard_is_answered_by_real_data(prometheus: str, title: str) -> None:
    expression = QUERIES[title].replace("$__rate_interval", "30s").replace("$job", ".*")
    answers = ask(prometheus, expression)
    assert answers
    assert all(math.isfinite(float(one["value"][1])) for one in answers)


def test_no_rule_fails_on_real_data(prometheus: str) -> None:
    groups = httpx.get(f"{prometheus}/api/v1/rules", trust_env=False).json()["data"]["groups"]
    assert [rule["name"] for group in groups for rule in group["rules"] if rule.get("lastError")] == []
    assert sum(len(group["rules"]) for group in groups) > 10
