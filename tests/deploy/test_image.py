"""The image: what it holds, and that it runs as the manifests run it."""

import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from app import __version__
from tests.deploy.load import open_loop
from tests.deploy.podman import Container, Podman, container
from tests.deploy.tools import K8S, run
from tests.models import write_colour_model
from tests.service import ROOT, free_ports

pytestmark = pytest.mark.timeout(900)

MAX_SECONDS_TO_READY = 10  # 0.9 on an idle machine of two cores; others may be at work here
MAX_MEGABYTES = 260  # added to the base, Python included
CLOCK = (ROOT / "docs/images/clock.jpg").read_bytes()
POD = yaml.safe_load((K8S / "base/deployment.yaml").read_text())["spec"]["template"]["spec"]
MEMORY = POD["containers"][0]["resources"]["limits"]["memory"]
AS_IN_THE_MANIFEST = [
    "--read-only",
    "--read-only-tmpfs=false",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    f"--user={POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}",
    f"--memory={MEMORY.removesuffix('i').lower()}",
    f"--cpus={POD['containers'][0]['resources']['limits']['cpu']}",
]
UNWANTED = (
    "pip", "pip3", "gcc", "cc", "c++", "ld", "as", "make", "git", "curl", "wget", "pytest", "mypy",
    "torch", "ensurepip/_bundled", "python-wheels", ".git", ".env", ".venv", "tests", "training", "id_rsa",
)  # fmt: skip


@pytest.fixture(scope="module")
def files(podman: Podman, image: str, tmp_path_factory: pytest.TempPathFactory) -> list[tarfile.TarInfo]:
    """Every file of the image."""
    archive = tmp_path_factory.mktemp("image") / "files.tar"
    podman("create", "--name", "files", image)
    podman("export", "--output", archive, "files")
    podman("rm", "files")
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    archive.unlink()
    return members


@pytest.fixture(scope="module")
def running(podman: Podman, image: str) -> Iterator[Container]:
    """The container as the Deployment runs it."""
    begun = time.monotonic()
    with container(podman, image, free_ports(1)[0], AS_IN_THE_MANIFEST) as one:
        one.wait_until_ready()
        assert time.monotonic() - begun < MAX_SECONDS_TO_READY
        yield one


def test_the_image_holds_no_pip_compiler_test_or_secret(files: list[tarfile.TarInfo]) -> None:
    ours = [Path("/") / one.name for one in files]
    programs = [one for one in ours if one.parent.name in ("bin", "sbin", "site-packages", "convserve")]
    assert [one for one in programs if one.name in UNWANTED] == []
    assert [one for one in ours if one.suffix in (".key", ".pt", ".h", ".o", ".a") and one.is_relative_to("/srv")] == []
    assert [one for one in ours if "tests" in one.parts and "site-packages" in one.parts] == []
    assert [one for one in ours if ".cache" in one.parts or one.parent == Path("/var/lib/apt/lists")] == []
    assert {one.parts[3] for one in ours if one.is_relative_to("/srv/convserve") and len(one.parts) > 3} == {
        "LICENSE",
        "app",
        "models",
    }


def test_nothing_in_the_image_belongs_to_the_user_that_runs_it(files: list[tarfile.TarInfo]) -> None:
    assert [one.name for one in files if one.uid == 65532 or one.gid == 65532] == []


def test_what_is_added_to_the_base_is_small(podman: Podman, base: str, image: str) -> None:
    whole, below = (int(podman("image", "inspect", "--format", "{{.Size}}", name).stdout) for name in (image, base))
    assert (whole - below) / 2**20 < MAX_MEGABYTES


def test_no_bytecode_is_stale(podman: Podman, image: str) -> None:
    """A read-only root cannot replace it, and every start would compile those modules again: a second, when it happened."""
    said = podman(
        "run", "--rm", "--network", "host", "--entrypoint", "python3", image, "-v", "-c", "import app.__main__"
    ).stderr
    assert "matches" in said or "unchecked" in said or "code object" in said
    assert [line for line in said.splitlines() if "stale" in line] == []


def test_the_labels_say_what_the_image_is_and_where_it_comes_from(podman: Podman, image: str, base: str) -> None:
    template = "{{range $name, $value := .Labels}}{{$name}}={{$value}}\n{{end}}"
    lines = podman("image", "inspect", "--format", template, image).stdout.splitlines()
    labels = dict(line.split("=", 1) for line in lines if line)
    name = "org.opencontainers.image."
    assert labels[f"{name}version"] == __version__
    assert labels[f"{name}licenses"] == "Apache-2.0"
    assert labels[f"{name}base.name"] == base
    assert labels[f"{name}revision"] == run(["git", "rev-parse", "HEAD"]).stdout.strip()
    assert labels.keys() >= {f"{name}{one}" for one in ("title", "description", "created", "source")}


def test_it_answers_a_photograph(running: Container) -> None:
    with running.client() as client:
        answer = client.post("/predict", content=CLOCK)
        assert answer.json()["predictions"][0]["label"] == "analog clock"
        assert client.get("/health").json()["threads"] == int(POD["containers"][0]["resources"]["limits"]["cpu"])


def test_it_runs_without_root_or_any_capability(running: Container) -> None:
    status = Path(f"/proc/{running.inspect('{{.State.Pid}}')}/status").read_text()
    fields = {line.split(":")[0]: line.split()[1:] for line in status.splitlines()}
    assert fields["Uid"] == ["65532"] * 4
    assert fields["Gid"] == ["65532"] * 4
    assert {fields[one][0].strip("0") for one in ("CapPrm", "CapEff", "CapBnd")} == {""}
    assert fields["NoNewPrivs"] == ["1"]


def test_nothing_but_tmp_can_be_written(running: Container) -> None:
    code = """
import os
for folder, below, files in os.walk("/"):
    below[:] = [one for one in below if os.path.join(folder, one) not in ("/proc", "/sys", "/dev")]
    for path in [folder, *(os.path.join(folder, one) for one in files)]:
        if os.access(path, os.W_OK) and not os.path.islink(path):
            print(path)
"""
    assert running.python(code).split() == ["/tmp"]


def test_the_health_check_turns_healthy_and_unhealthy(podman: Podman, image: str, port: int) -> None:
    with container(podman, image, port, AS_IN_THE_MANIFEST, drain_seconds=30) as one:
        one.wait_until_ready()
        assert one.is_healthy()
        podman("kill", "--signal", "TERM", one.name)
        deadline = time.monotonic() + 10
        while one.is_healthy():
            assert time.monotonic() < deadline
        assert httpx.get(f"{one.url}/livez", trust_env=False).status_code == 200  # draining, not dead


def test_sigterm_under_load_loses_nothing(podman: Podman, image: str, port: int) -> None:
    with container(podman, image, port, AS_IN_THE_MANIFEST, drain_seconds=3) as one:
        one.wait_until_ready()
        with open_loop(one.url, CLOCK, per_second=30, at_most_seconds=20) as load:
            time.sleep(1)
            podman("kill", "--signal", "TERM", one.name)
            ended_at = time.monotonic() + 2.5  # of the 3 s in which it serves on
            time.sleep(2.5)
        assert load.failures == []
        assert load.sent > 60
        assert time.monotonic() >= ended_at
        assert podman("wait", one.name).stdout.strip() == "0"


def test_sigterm_ends_it_while_its_model_loads(podman: Podman, image: str, port: int, tmp_path: Path) -> None:
    """Process 1 has no default actions: a signal that nobody handles yet is lost, and the grace period waited for."""
    write_colour_model(tmp_path / "slow.onnx", repeats=3000)
    (tmp_path / "slow.onnx").chmod(0o644)
    flags = [*AS_IN_THE_MANIFEST, f"--volume={tmp_path}/slow.onnx:/models/slow.onnx:ro"]
    with container(podman, image, port, flags, model="/models/slow.onnx") as one:
        deadline = time.monotonic() + 30
        while one.inspect("{{.State.Running}}") == "true":
            assert time.monotonic() < deadline
            podman("kill", "--signal", "TERM", one.name, check=False)
            time.sleep(0.1)
        assert one.inspect("{{.State.ExitCode}}") == "0"
        assert "serving" not in podman("logs", one.name).stdout
