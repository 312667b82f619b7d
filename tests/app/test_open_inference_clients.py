"""Other people's clients of the Open Inference Protocol, in environments of their own: `make test-clients` makes them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import COLOURS, colour_probabilities, png
from tests.service import ROOT, ServiceProcess

COLOUR = (60, 200, 30)
EXPECTED = colour_probabilities(COLOUR)


def understood(script: str, address: str, tmp_path: Path, *, environment: str = ".venv-clients") -> Any:
    """What the script prints, run in its environment."""
    python = ROOT / environment / "bin" / "python"
    if not python.exists():
        pytest.skip("the clients' pins clash with ours: make test-clients runs them")
    image = tmp_path / "image.png"
    image.write_bytes(png(COLOUR))
    command = [str(python), str(ROOT / "tests" / "clients" / script), address, str(image)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_tritons_client_is_served(service: ServiceProcess, tmp_path: Path) -> None:
    found = understood("with_tritonclient.py", f"127.0.0.1:{service.port}", tmp_path)
    assert found["ready"] == [True, True, True]
    assert found["not_ready"] is False
    assert (found["server"], found["id"]) == ("convserve", "42")
    assert found["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}]
    for probabilities in found["probabilities"]:
        assert np.array(probabilities) == pytest.approx(np.array([EXPECTED] * len(probabilities)), abs=1e-5)
    assert [len(probabilities) for probabilities in found["probabilities"]] == [1, 2, 2, 1]
    best = sorted(range(3), key=lambda index: -EXPECTED[index])[:2]
    assert found["classes"] == [f"{EXPECTED[index]:.6f}:{index}:{COLOURS[index]}" for index in best]
    (bad, why), (unknown, which) = found["errors"]
    assert (bad, unknown) == ("415", "404")
    assert "image 0: the bytes are not an image" in why
    assert "there is no model other" in which


def test_kserves_client_is_served(service: ServiceProcess, tmp_path: Path) -> None:
    found = understood("with_kserve.py", service.url, tmp_path)
    assert found["ready"] == [True, True, True]
    for request_id, model, probabilities in found["answers"]:
        assert (request_id, model) == ("42", "colours")
        assert np.array(probabilities) == pytest.approx(np.array([EXPECTED] * len(probabilities)), abs=1e-5)
    assert [len(probabilities) for _, _, probabilities in found["answers"]] == [1, 1, 2]
    assert "image 0: the bytes are not an image" in found["error"]


def test_mlservers_types_are_understood_both_ways(service: ServiceProcess, tmp_path: Path) -> None:
    found = understood("with_mlserver.py", service.url, tmp_path, environment=".venv-mlserver")
    assert found["server"] == "convserve"
    assert found["model"]["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}]
    assert len(found["answers"]) == 3
    for request_id, model, probabilities in found["answers"]:
        assert (request_id, model) == ("42", "colours")
        assert np.array(probabilities) == pytest.approx(np.array([EXPECTED] * 2), abs=1e-5)
    assert "image 0: the bytes are not an image" in found["errors"][0]
    assert "there is no model other" in found["errors"][1]
