"""Dockerfiles, YAML and scripts, by their linters."""

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
