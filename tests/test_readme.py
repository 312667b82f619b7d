"""README's curl gives README's answer."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.service import ROOT, ServiceProcess

README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language: str, containing: str) -> str:
    """The first fenced block of a language that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(str(block).strip() for block in blocks if containing in block)


def run(command: str, port: int) -> dict[str, Any]:
    """Runs a curl of the README against the service on `port`."""
    words = shlex.split(re.sub(r"localhost:80\d0", f"127.0.0.1:{port}", command))
    answer: dict[str, Any] = json.loads(subprocess.run([*words, "--silent"], cwd=ROOT, check=True, capture_output=True).stdout)
    return answer


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_first_curl_of_the_readme_gives_its_answer() -> None:
    shown = json.loads(fenced("json", '"predictions"'))
    service = ServiceProcess(drain_seconds=0)
    try:
        service.wait_until_ready()
        answer = run(fenced("sh", "docs/images/clock.jpg"), service.port)
    finally:
        service.close()
    # Processors round differently.
    assert [one.pop("probability") for one in answer["predictions"]] == pytest.approx(
        [one.pop("probability") for one in shown["predictions"]], abs=2e-3
    )
    assert answer | {"request_id": "…"} == shown


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("picture", ["docs/images/seven.png", "docs/images/seven-on-paper.jpg"])
def test_the_digits_model_of_the_readme_reads_its_pictures(picture: str) -> None:
    start, curl = fenced("sh", "models/digits.onnx").splitlines()
    assert "models/digits.onnx" in start
    service = ServiceProcess(drain_seconds=0, model=ROOT / "models" / "digits.onnx")
    try:
        service.wait_until_ready()
        answer = run(curl.replace("docs/images/seven.png", picture), service.port)
    finally:
        service.close()
    assert answer["predictions"][0]["label"] == "7"


def test_every_file_that_the_readme_names_is_there() -> None:
    for name in set(re.findall(r"(?:docs|models|app)/[\w./-]+\.(?:png|jpg|onnx|py|md)", README)) - {
        "models/mine.onnx",
        "models/mine.html",
    }:
        assert Path(ROOT, name).is_file(), name
