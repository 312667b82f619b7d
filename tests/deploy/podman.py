"""Images and containers for the tests, by podman in a storage of the tests' own."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import pytest

from tests.deploy.tools import tool
from tests.service import PATIENCE_SECONDS, ROOT

DEBIAN = "bookworm"
BASE = "localhost/debian:bookworm-slim"
# What a machine needs that is itself a guest, without systemd and unable to raise limits: no namespaces while building.
BUILD_FLAGS = ["--isolation", "chroot", "--network", "host"]
CONFIGURATION = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[network]
network_backend = "netavark"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


@dataclass(frozen=True)
class Podman:
    """podman with its images and containers in a folder."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "containers.conf").write_text(CONFIGURATION)

    @property
    def command(self) -> list[str]:
        """The start of a command line."""
        tool("runc")
        return [tool("podman"), f"--root={self.folder}/storage", f"--runroot={self.folder}/run"]

    @property
    def environment(self) -> dict[str, str]:
        """The environment that podman runs in."""
        return os.environ | {"CONTAINERS_CONF": f"{self.folder}/containers.conf"}

    def __call__(
        self, *arguments: str | Path, check: bool = True, stdin: IO[bytes] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs podman to its end."""
        ended = subprocess.run(
            [*self.command, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert not check or ended.returncode == 0, f"{arguments}\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
        return ended

    def import_base(self) -> str:
        """Makes debian:bookworm-slim's like, since no registry may be at hand; skips the test where Debian cannot be had."""
        if self("image", "exists", BASE, check=False).returncode == 0:
            return BASE
        folder = self.folder / "debian"
        command = [tool("debootstrap"), "--variant=minbase", "--include=ca-certificates", DEBIAN, str(folder)]
        made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if made.returncode:
            pytest.skip(f"debootstrap could not make a Debian: {made.stdout[-300:]}")
        shutil.rmtree(folder / "var/cache/apt")
        with subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE) as tar:
            self("import", "-", BASE, stdin=tar.stdout)
        shutil.rmtree(folder)
        return BASE

    def make_image(self, base: str, tag: str, *arguments: str) -> None:
        """`make image`, with what this machine's network asks for."""
        flags = list(BUILD_FLAGS)
        if Path("/etc/pip.conf").exists():
            flags += ["-v", "/etc/pip.conf:/etc/pip.conf:ro"]
        if certificate := os.environ.get("PIP_CERT"):
            flags += ["-v", f"{certificate}:{certificate}:ro", "--env", f"PIP_CERT={certificate}"]
        command = ["make", "image", f"CONTAINER={' '.join(self.command)}", f"BASE={base}", f"IMAGE={tag}"]
        built = subprocess.run(
            [*command, f"BUILDFLAGS={' '.join(flags)}", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert built.returncode == 0, f"{built.stdout[-4000:]}\n{built.stderr[-4000:]}"


@dataclass(frozen=True)
class Container:
    """A container as it runs."""

    podman: Podman
    name: str
    url: str

    def client(self) -> httpx.Client:
        """A keep-alive client."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS, trust_env=False)

    def inspect(self, template: str) -> str:
        """A field of `podman inspect`."""
        return self.podman("inspect", "--format", template, self.name).stdout.strip()

    def python(self, code: str) -> str:
        """What a Python inside prints."""
        return self.podman("exec", self.name, "python3", "-c", code).stdout.strip()

    def is_healthy(self) -> bool:
        """The image's HEALTHCHECK, run once; elsewhere the engine's timer runs it."""
        return self.podman("healthcheck", "run", self.name, check=False).returncode == 0

    def wait_until_ready(self) -> None:
        """Asks `/readyz` until it answers 200."""
        wait_until_ready(self.url, lambda: self.podman("logs", self.name, check=False).stdout)


def wait_until_ready(url: str, log: object = None, seconds: float = PATIENCE_SECONDS) -> None:
    """Asks `/readyz` until it answers 200."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.01)
    raise TimeoutError(f"{url} did not get ready: {log() if callable(log) else ''}")


@contextmanager
def container(podman: Podman, image: str, port: int, flags: Sequence[str] = (), **settings: object) -> Iterator[Container]:
    """A container of an image on a port of this machine, for as long as the block lasts."""
    environment = {"host": "127.0.0.1", "port": port} | settings
    variables = [word for name, value in environment.items() for word in ("--env", f"CONVSERVE_{name.upper()}={value}")]
    name = f"convserve-{port}"
    podman("run", "--detach", "--name", name, "--network", "host", *flags, *variables, image)
    running = Container(podman, name, f"http://127.0.0.1:{port}")
    try:
        yield running
    finally:
        podman("rm", "--force", "--time", "0", name)
