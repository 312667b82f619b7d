"""What the tests of training share: a small data set, and one model really trained on it."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.test_sources import write_images

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


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Twenty images of each of two classes."""
    write_images(tmp_path / "pets", "cat", 20)
    write_images(tmp_path / "pets", "dog", 20, first=20)
    return tmp_path / "pets"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which must be empty at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []
