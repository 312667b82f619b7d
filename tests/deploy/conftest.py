"""One image for all tests of the container: built once, from our Dockerfile on a fresh Debian."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.podman import Podman
from tests.service import free_ports

IMAGE = "localhost/convserve:test"


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """podman, where it can run. PODMAN_STORAGE names a folder that keeps images from one run of the tests to the next."""
    if os.getuid() != 0:
        pytest.skip("debootstrap, which makes the base image, needs root")
    kept = os.environ.get("PODMAN_STORAGE")
    podman = Podman(Path(kept) if kept else tmp_path_factory.mktemp("podman"))
    if (said := podman("info", check=False)).returncode:
        pytest.skip(f"podman cannot run here: {said.stderr[-300:]}")
    yield podman
    podman("rm", "--all", "--force", "--time", "0", check=False)
    if not kept:
        podman("rmi", "--all", "--force", check=False)


@pytest.fixture(scope="session")
def base(podman: Podman) -> str:
    """The name of a Debian like debian:bookworm-slim."""
    return podman.import_base()


@pytest.fixture(scope="session")
def image(podman: Podman, base: str) -> str:
    """The name of our image."""
    podman.make_image(base, IMAGE)
    return IMAGE


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    return free_ports(1)[0]
