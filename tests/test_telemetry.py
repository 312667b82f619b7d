"""No word of a user's models leaves the machine: onnxruntime's telemetry is off, in the service and in training."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import ROOT

TURN_IT_OFF = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")


@pytest.mark.parametrize("module", ["app.classifier", "training.model_file"])
def test_onnxruntime_keeps_no_diary_to_send(module: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in TURN_IT_OFF}
    homes = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    load = f"import {module}, onnxruntime; onnxruntime.InferenceSession({str(ROOT / 'models' / 'digits.onnx')!r})"
    subprocess.run([sys.executable, "-B", "-c", load], cwd=ROOT, env=environment | homes, check=True)
    assert not list(tmp_path.rglob("*"))
