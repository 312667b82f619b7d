"""Dockerfiles, YAML and configurations by their linters, and the bill of materials."""

import json
import re

import pytest

from tests.deploy.tools import DOCKERFILES, run, tool
from tests.service import ROOT


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_hadolint_finds_no_fault(file: object) -> None:
    run([tool("hadolint"), str(file)])


def test_yamllint_finds_no_fault() -> None:
    places = ["docker-compose.yml", "k8s", "docs/compose", ".yamllint.yaml", ".checkov.yaml", ".pre-commit-config.yaml"]
    run([tool("yamllint"), "--strict", *places])


def test_the_balancers_configuration_is_one_that_haproxy_takes() -> None:
    run([tool("haproxy"), "-c", "-f", ROOT / "docs/compose/haproxy.cfg"])


def test_the_bill_of_materials_lists_every_locked_package_with_its_hashes() -> None:
    tool("cyclonedx-py")
    run(["make", "sbom"])
    listed = json.loads((ROOT / "build/sbom.cdx.json").read_text())["components"]
    locked = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements/serve.txt").read_text(), flags=re.MULTILINE)
    assert sorted((one["name"], one["version"]) for one in listed) == sorted(locked)
    assert all(one["externalReferences"][0]["hashes"] for one in listed)
