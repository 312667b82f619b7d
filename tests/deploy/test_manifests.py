"""The Kubernetes manifests: rendered as users render them, held against the schemas of Kubernetes and of the operators."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import __version__
from app.settings import PREFIX, Settings
from tests.deploy.tools import DOCKERFILES, K8S, OPS, Manifest, only, pod_specs, render, render_with, run, tool
from tests.service import ROOT

MINORS = ("1.35", "1.36", "1.37")
OVERLAYS = ("cpu", "gpu", "model-volume")
COMPONENTS = {  # what is added, to what
    "monitoring": "base",
    "ingress": "base",
    "kserve": "base",
    "queue-autoscaling": "base",
    "model-image": "base",
    "model-download": "base",
    "training/job": "overlays/model-volume",
    "training/kubeflow": "overlays/model-volume",
}
CUSTOM = {  # kind to the class that holds its schema, None where no package has it
    "InferenceService": None,
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1:PrometheusRule",
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1:ServiceMonitor",
    "ScaledObject": "cloudcoil.models.keda.v1alpha1:ScaledObject",
    "TrainJob": "kubeflow_trainer_api.models:TrainerV1alpha1TrainJob",
    "TrainingRuntime": "kubeflow_trainer_api.models:TrainerV1alpha1TrainingRuntime",
}
# An unknown field is one that the class does not give back.
CHECK_CUSTOM = """
import importlib, json, sys
manifest = json.load(sys.stdin)
module, name = sys.argv[1].split(":")
kind = getattr(importlib.import_module(module), name)
def lost(before, after, path=""):
    if isinstance(before, dict):
        return [one for key, value in before.items() for one in (
            lost(value, after[key], f"{path}.{key}") if isinstance(after, dict) and key in after else [f"{path}.{key}"])]
    if isinstance(before, list):
        return [one for i, (a, b) in enumerate(zip(before, after)) for one in lost(a, b, f"{path}[{i}]")]
    return []
after = json.loads(kind.model_validate(manifest).model_dump_json(by_alias=True, exclude_none=True))
sys.exit("\\n".join(lost(manifest, after)) or 0)
"""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Manifest]]:
    """Everything that this repository can deploy: the base, every overlay, every component on what it is made for."""
    plain = {name: render(K8S / name) for name in ("base", *(f"overlays/{one}" for one in OVERLAYS))}
    scratch = tmp_path_factory.mktemp("overlays")
    for component, base in COMPONENTS.items():
        folder = scratch / component.replace("/", "-")
        folder.mkdir()
        plain[component] = render_with(folder, component, base=base)
    return plain


def test_every_overlay_and_component_is_rendered(rendered: dict[str, list[Manifest]]) -> None:
    folders = {path.parent.relative_to(K8S) for path in K8S.rglob("kustomization.yaml")}
    mine = {Path(name) if name.startswith(("base", "overlays")) else Path("components") / name for name in rendered}
    assert folders - mine == {Path("components/training/shared")}


@pytest.mark.parametrize("minor", MINORS)
def test_every_object_is_valid_in_the_last_three_kubernetes_minors(
    rendered: dict[str, list[Manifest]], minor: str, tmp_path: Path
) -> None:
    for name, manifests in rendered.items():
        core = [one for one in manifests if one["kind"] not in CUSTOM]
        (tmp_path / f"{name.replace('/', '-')}.yaml").write_text(yaml.safe_dump_all(core))
    run([tool("kubernetes-validate"), "--strict", "-k", minor, *sorted(tmp_path.glob("*.yaml"))])


def test_every_custom_object_has_only_fields_of_its_own_schema(rendered: dict[str, list[Manifest]]) -> None:
    tool("cyclonedx-py")  # .venv-ops is there
    seen = set()
    for manifest in (one for manifests in rendered.values() for one in manifests if one["kind"] in CUSTOM):
        if source := CUSTOM[manifest["kind"]]:
            run([OPS / "python", "-c", CHECK_CUSTOM, source], input=json.dumps(without_quantities(manifest)))
        seen.add(manifest["kind"])
    assert seen == CUSTOM.keys()


def without_quantities(node: Any) -> Any:
    """The manifest without sizes such as 2Gi: kubeflow_trainer_api takes them for objects."""
    if isinstance(node, list):
        return [without_quantities(one) for one in node]
    if not isinstance(node, dict):
        return node
    return {name: without_quantities(one) for name, one in node.items() if name not in ("sizeLimit", "resourcesPerNode")}


def test_the_pod_of_the_inference_service_is_a_valid_pod(rendered: dict[str, list[Manifest]], tmp_path: Path) -> None:
    """No package holds KServe's schema; its predictor is a pod specification with these five fields beside it."""
    predictor = dict(only(rendered["kserve"], "InferenceService")["spec"]["predictor"])
    own = {name: predictor.pop(name) for name in ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")}
    assert own["scaleMetric"] == "cpu"
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": predictor}
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))
    run([tool("kubernetes-validate"), "--strict", "-k", MINORS[-1], tmp_path / "pod.yaml"])


def test_no_pod_gets_service_links_a_token_or_a_privilege(rendered: dict[str, list[Manifest]]) -> None:
    """A Service named convserve would otherwise set CONVSERVE_PORT, which is no setting of ours: the pod would not start."""
    for name, manifests in rendered.items():
        for pod in pod_specs(manifests):
            assert pod["enableServiceLinks"] is False, name
            assert pod["automountServiceAccountToken"] is False, name
            assert pod["securityContext"]["runAsNonRoot"] is True, name
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
            for container in pod["containers"] + pod.get("initContainers", []):
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }, name


def test_every_setting_is_one_that_the_service_knows(
    rendered: dict[str, list[Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for manifests in rendered.values():
        [settings] = [one for one in manifests if one["metadata"]["name"].startswith("convserve-settings")]
        with monkeypatch.context() as patch:
            for name, value in settings["data"].items():
                patch.setenv(name, value)
            assert Settings.load().model_dump() != Settings.model_construct().model_dump()


def test_the_grace_period_covers_the_drain_and_the_longest_request(rendered: dict[str, list[Manifest]]) -> None:
    for name in ("base", *(f"overlays/{one}" for one in OVERLAYS)):
        [settings] = [one["data"] for one in rendered[name] if one["metadata"]["name"].startswith("convserve-settings")]
        pod = only(rendered[name], "Deployment")["spec"]["template"]["spec"]
        drain = float(settings[PREFIX + "DRAIN_SECONDS"])
        longest = (float(settings[PREFIX + "REQUEST_TIMEOUT_MS"]) + float(settings[PREFIX + "BODY_TIMEOUT_MS"])) / 1000
        assert pod["terminationGracePeriodSeconds"] >= drain + longest + 2
        probe = pod["containers"][0]["readinessProbe"]
        assert drain >= 2 * probe["periodSeconds"] * probe["failureThreshold"]


def test_a_rollout_never_takes_a_pod_away_before_its_successor_is_ready(rendered: dict[str, list[Manifest]]) -> None:
    for name in ("base", *(f"overlays/{one}" for one in OVERLAYS)):
        deployment = only(rendered[name], "Deployment")["spec"]
        assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert "replicas" not in deployment  # else every apply would undo what the autoscaler did


def test_images_carry_the_version_of_the_package(rendered: dict[str, list[Manifest]]) -> None:
    images = {
        container["image"]
        for manifests in rendered.values()
        for pod in pod_specs(manifests)
        for container in pod["containers"] + pod.get("initContainers", [])
    }
    assert images == {f"convserve:{__version__}", f"convserve:{__version__}-cuda", f"convserve-training:{__version__}"}
    assert f"convserve:{__version__}" in (ROOT / "docker-compose.yml").read_text()


def test_checkov_finds_nothing_that_is_not_justified(rendered: dict[str, list[Manifest]], tmp_path: Path) -> None:
    for name, manifests in rendered.items():
        (tmp_path / f"{name.replace('/', '-')}.yaml").write_text(yaml.safe_dump_all(manifests))
    options: list[str | Path] = ["--quiet", "--compact", "--skip-download", "--config-file", ROOT / ".checkov.yaml"]
    run([tool("checkov"), "--directory", tmp_path, "--framework", "kubernetes", *options])
    run([tool("checkov"), "--file", *DOCKERFILES, "--framework", "dockerfile", *options])
