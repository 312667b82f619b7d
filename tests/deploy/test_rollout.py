"""A rollout behind a real HAProxy, with the configuration of docker-compose.yml and the drain of the manifests."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.load import open_loop
from tests.deploy.podman import wait_until_ready
from tests.deploy.tools import tool
from tests.service import ROOT, ServiceProcess, free_ports

SLOTS = 4  # three replicas and the one that a rollout adds
SETTINGS = dict(line.split("=") for line in (ROOT / "k8s/base/settings.env").read_text().splitlines() if line[:1] == "C")
DRAIN_SECONDS = float(SETTINGS["CONVSERVE_DRAIN_SECONDS"])
DIGIT = (ROOT / "docs/images/seven.png").read_bytes()
PER_SECOND = 40

pytestmark = pytest.mark.timeout(240)


def start(port: int) -> ServiceProcess:
    """A replica, ready."""
    process = ServiceProcess(model=ROOT / "models/digits.onnx", port=port, threads=1, drain_seconds=DRAIN_SECONDS)
    process.wait_until_ready()
    return process


@contextmanager
def balancer(port: int, slots: list[int], folder: Path) -> Iterator[str]:
    """HAProxy on our configuration; only the listening address and the servers' names are the test's."""
    text = (ROOT / "docs/compose/haproxy.cfg").read_text()
    text, replaced = re.subn(r"bind :8080", f"bind 127.0.0.1:{port}", text)
    servers = "\n".join(f"  server slot{number} 127.0.0.1:{slot}" for number, slot in enumerate(slots))
    text, templates = re.subn(r"^  server-template .*$", servers, text, flags=re.MULTILINE)
    assert (replaced, templates) == (1, 1)
    (folder / "haproxy.cfg").write_text(text)
    with subprocess.Popen([tool("haproxy"), "-db", "-f", folder / "haproxy.cfg"]) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def test_a_rollout_of_three_replicas_and_the_death_of_one_fail_no_request(tmp_path: Path) -> None:
    """Each successor is ready before a predecessor is told to end, as maxUnavailable 0 has it."""
    tool("haproxy")
    port, *slots = free_ports(1 + SLOTS)
    replicas = [start(slot) for slot in slots[:3]]
    spare = slots[3]
    try:
        with balancer(port, slots, tmp_path) as url:
            wait_until_ready(url, seconds=30)
            with open_loop(url, DIGIT, per_second=PER_SECOND, at_most_seconds=120) as load:
                begun = time.monotonic()
                for number in range(3):
                    successor, predecessor = start(spare), replicas[number]
                    predecessor.send(signal.SIGTERM)
                    assert predecessor.wait() == 0
                    replicas[number], spare = successor, predecessor.port
                rolled_out = time.monotonic()
                assert load.failures == []
                time.sleep(2)
                replicas[0].send(signal.SIGKILL)
                time.sleep(3)
            assert load.failures == []
            assert load.sent > PER_SECOND * 3 * DRAIN_SECONDS
            assert rolled_out - begun > 3 * DRAIN_SECONDS
    finally:
        for replica in replicas:
            replica.close()
