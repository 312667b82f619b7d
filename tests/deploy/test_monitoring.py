"""The dashboard and the alert rules, asked of a real Prometheus that scrapes a real service."""

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
import yaml

from tests.deploy.tools import K8S, tool
from tests.service import ROOT, serve

MONITORING = K8S / "components" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
QUERIES = {panel["title"]: target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]}
EMPTY_WITHOUT_REFERENCE = "Drift from the training data (PSI)"  # a gauge that only some model files have


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Prometheus's address, when it has scraped a service that answers, refuses and fails for a few seconds."""
    program = tool("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serve(model=ROOT / "models/digits.onnx", max_queue_size=1) as service:
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
                _exercise(service.url, seconds=6)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.kill()


def _exercise(url: str, seconds: float) -> None:
    image = (ROOT / "docs/images/seven.png").read_bytes()
    files = [("files", image)] * 2
    until = time.monotonic() + seconds
    with httpx.Client(base_url=url, trust_env=False) as client:
        while time.monotonic() < until:
            assert client.post("/predict", content=image).status_code == 200
            assert client.post("/predict", content=b"text").status_code == 415
            client.post("/predict/batch", files=files)  # two images where one may wait: refused
            time.sleep(0.05)


@pytest.mark.parametrize("title", QUERIES)
def test_every_query_of_the_dashboard_is_answered_by_real_data(prometheus: str, title: str) -> None:
    expression = QUERIES[title].replace("$__rate_interval", "5s").replace("$job", ".*")
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}, trust_env=False).json()
    assert answer["status"] == "success"
    if title != EMPTY_WITHOUT_REFERENCE:
        assert answer["data"]["result"]
        assert all(re.fullmatch(r"-?[\d.e+-]+", one["value"][1]) for one in answer["data"]["result"])


def test_no_rule_fails_on_real_data(prometheus: str) -> None:
    groups = httpx.get(f"{prometheus}/api/v1/rules", trust_env=False).json()["data"]["groups"]
    assert [rule["name"] for group in groups for rule in group["rules"] if rule.get("lastError")] == []
    assert sum(len(group["rules"]) for group in groups) > 10
