"""What the tests of training share: a small data set, and one model really trained on it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
EPOCHS = "15"


@pytest.fixture(scope="session")
def digits() -> Path:
    """80 training and 50 test images of MNIST."""
    return ROOT / "tests" / "data" / "digits"


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file written by the command itself."""
    out = tmp_path_factory.mktemp("trained") / "digits.onnx"
    command = [sys.executable, "-W", "error", "-m", "training", "train", str(digits), "--recipe", "digits"]
    subprocess.run([*command, "--out", str(out), "--epochs", EPOCHS, "--threads", "1"], cwd=ROOT, check=True, timeout=100)
    return out
