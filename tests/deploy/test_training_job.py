"""The training Job's own command, as two machines would run it, on this one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from app.classifier import Classifier
from tests.deploy.tools import K8S
from tests.service import ROOT, free_ports

JOB = yaml.safe_load((K8S / "components/training/job/job.yaml").read_text())["spec"]
CONTAINER = JOB["template"]["spec"]["containers"][0]


def command_of(rank: int, port: int, folder: Path) -> list[str]:
    """The container's command with its environment filled in; data, output and port are the test's."""
    words = [*CONTAINER["command"], *CONTAINER["args"]]
    places = {"$(NODE_RANK)": str(rank), "$(MASTER)": "127.0.0.1", "29500": str(port)}
    places |= {"/data": str(ROOT / "tests/data/digits"), "/models": str(folder)}
    pattern = "|".join(re.escape(one) for one in places)
    filled = [re.sub(pattern, lambda found: places[found[0]], word) for word in words]
    assert filled[0] == "torchrun"
    return [sys.executable, "-m", "torch.distributed.run", *filled[1:], "--recipe", "digits", "--epochs", "1", "--threads", "1"]


@pytest.mark.timeout(180)
def test_the_jobs_command_on_every_node_makes_one_model(tmp_path: Path) -> None:
    [port] = free_ports(1)
    nodes = [
        subprocess.Popen(command_of(rank, port, tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(JOB["completions"])
    ]
    errors = [node.communicate(timeout=150)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert Classifier.load(tmp_path / "model.onnx").spec.labels


def test_the_job_is_as_large_as_its_command_says() -> None:
    assert JOB["completions"] == JOB["parallelism"]
    assert f"--nnodes={JOB['completions']}" in CONTAINER["command"]
    assert JOB["completionMode"] == "Indexed"
