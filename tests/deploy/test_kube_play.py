"""The rendered Deployment, run: podman plays Kubernetes YAML."""

from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy.podman import Podman, wait_until_ready
from tests.deploy.tools import K8S, only, render
from tests.service import ROOT

pytestmark = pytest.mark.timeout(900)


def test_podman_plays_the_rendered_deployment_and_it_answers(podman: Podman, image: str, port: int, tmp_path: Path) -> None:
    """Changed is the image's name, which is local; added is a port of this machine."""
    manifests = render(K8S / "base")
    deployment = only(manifests, "Deployment")
    settings = only(manifests, "ConfigMap")
    [server] = deployment["spec"]["template"]["spec"]["containers"]
    server["image"] = image
    server["ports"][0] |= {"hostPort": port, "hostIP": "127.0.0.1"}
    file = tmp_path / "played.yaml"
    file.write_text(yaml.safe_dump_all([settings, deployment]))
    podman("kube", "play", file)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", lambda: podman("ps", "--all").stdout)
        photograph = (ROOT / "docs/images/clock.jpg").read_bytes()
        answer = httpx.post(f"http://127.0.0.1:{port}/predict", content=photograph, trust_env=False).json()
        assert answer["predictions"][0]["label"] == "analog clock"
    finally:
        podman("kube", "down", file)
