"""The programs that check the container and the manifests: found, or the test is skipped and says what is missing."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.service import ROOT

OPS = ROOT / ".venv-ops" / "bin"
K8S = ROOT / "k8s"
DOCKERFILES = [ROOT / "Dockerfile", ROOT / "training" / "Dockerfile"]

Manifest = dict[str, Any]


def tool(name: str) -> str:
    """The path of a program, from .venv-ops or the machine."""
    found = shutil.which(name, path=os.pathsep.join([str(OPS), os.environ["PATH"], "/usr/sbin", "/sbin"]))
    if found is None:
        pytest.skip(f"{name} is not installed: .ci/setup installs it")
    return found


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end; what it printed is the message where it fails."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False, **({"cwd": ROOT} | options))
    assert ended.returncode == 0, f"{command}\n{ended.stdout[-8000:]}\n{ended.stderr[-8000:]}"
    return ended


def render(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    return list(yaml.safe_load_all(run([tool("kubectl"), "kustomize", folder]).stdout))


def render_with(scratch: Path, *components: str, base: str = "base") -> list[Manifest]:
    """The base or an overlay with components added, as a user's own overlay would."""
    relative = Path(os.path.relpath(K8S, scratch.resolve()))
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(relative / base)],
        "components": [str(relative / "components" / name) for name in components],
    }
    (scratch / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return render(scratch)


def only(manifests: Sequence[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one manifest of a kind (and name)."""
    [found] = [one for one in manifests if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    return found


def pod_specs(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Every pod that the manifests make, wherever its specification is nested."""

    def search(node: object) -> list[Manifest]:
        if isinstance(node, list):
            return [found for one in node for found in search(one)]
        if not isinstance(node, dict):
            return []
        return [node] if "containers" in node else [found for one in node.values() for found in search(one)]

    return search(list(manifests))
