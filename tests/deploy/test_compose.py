"""docker-compose.yml, run by podman-compose: the service, replicas behind HAProxy, Prometheus. Only Grafana is not run."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.conftest import IMAGE
from tests.deploy.podman import Podman
from tests.deploy.tools import run, tool
from tests.service import PATIENCE_SECONDS, ROOT, free_ports

pytestmark = pytest.mark.timeout(900)

COMPOSE = (ROOT / "docker-compose.yml").read_text()
# Debian's own programs, under the names and with the paths of the images that docker-compose.yml asks for.
STAND_INS = """FROM {base} AS both
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends haproxy prometheus >/dev/null
FROM both AS haproxy
USER haproxy
CMD ["haproxy", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
FROM both AS prometheus
USER prometheus
WORKDIR /prometheus
CMD ["prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""


@pytest.fixture(scope="module")
def ports(podman: Podman, base: str, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, int]]:
    """The project as it runs: each port of docker-compose.yml with the free one that it has here."""
    folder = tmp_path_factory.mktemp("compose")
    (folder / "Dockerfile").write_text(STAND_INS.format(base=base))
    for name in ("haproxy", "prometheus"):
        [stood_in] = re.findall(rf"image: (\S*/{name}:\S+)", COMPOSE)
        podman("build", "--isolation", "chroot", "--network", "host", "--target", name, "--tag", stood_in, folder)
    published = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+):", COMPOSE)]
    places = dict(zip(published, free_ports(len(published)), strict=True))
    text = re.sub(r"127\.0\.0\.1:(\d+):", lambda found: f"127.0.0.1:{places[int(found[1])]}:", COMPOSE)
    (folder / "docker-compose.yml").write_text(re.sub(r"([\[ ])\./", rf"\1{ROOT}/", text))
    command = [tool("podman-compose"), "--podman-args", " ".join(podman.command[1:]), "--profile=scale", "--profile=monitoring"]
    options: dict[str, Any] = {"cwd": folder, "env": podman.environment | {"IMAGE": IMAGE}}
    run([*command, "up", "--detach", "--no-build", "convserve", "replica", "haproxy", "prometheus"], **options)
    try:
        yield places
    finally:
        subprocess.run([*command, "down", "--volumes", "--timeout", "0"], capture_output=True, check=False, **options)


def poll(url: str, **options: Any) -> httpx.Response:
    """The first answer with status 200."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            if (answer := httpx.request(url=url, trust_env=False, **options)).status_code == 200:
                return answer
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(url)


@pytest.mark.parametrize("port", [8000, 8080], ids=["the service", "the balancer"])
def test_a_photograph_is_answered_by(ports: dict[int, int], port: int) -> None:
    content = (ROOT / "docs/images/clock.jpg").read_bytes()
    answer = poll(f"http://127.0.0.1:{ports[port]}/predict", method="POST", content=content)
    assert answer.json()["predictions"][0]["label"] == "analog clock"


def test_prometheus_scrapes_every_replica_and_knows_the_alerts(ports: dict[int, int]) -> None:
    prometheus = f"http://127.0.0.1:{ports[9090]}/api/v1"
    deadline = time.monotonic() + PATIENCE_SECONDS
    ready: list[dict[str, Any]] = []
    while len(ready) < 2:  # the service of port 8000, and the replica
        assert time.monotonic() < deadline, ready
        ready = poll(f"{prometheus}/query", method="GET", params={"query": "convserve_ready == 1"}).json()["data"]["result"]
        time.sleep(0.5)
    groups = poll(f"{prometheus}/rules", method="GET").json()["data"]["groups"]
    assert {group["name"] for group in groups} == {"convserve-ratios", "convserve-alerts"}


def test_every_file_that_is_mounted_is_there() -> None:
    mounted = re.findall(r"[\[ -]\./(\S+?):", COMPOSE)
    assert len(mounted) >= 6
    assert [one for one in mounted if not Path(ROOT / one).exists()] == []
