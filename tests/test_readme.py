"""README's curl gives README's answer."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.service import ROOT, ServiceProcess

README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language: str, containing: str) -> str:
    """The first fenced block of a language that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(str(block).strip() for block in blocks if containing in block)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("picture", ["docs/images/seven.png", "docs/images/seven-on-paper.jpg"])
def test_the_curl_of_the_readme_gives_its_answer(picture: str) -> None:
    command = fenced("sh", "curl").replace("docs/images/seven.png", picture)
    shown = json.loads(fenced("json", '"predictions"'))
    service = ServiceProcess(drain_seconds=0)
    try:
        service.wait_until_ready()
        words = shlex.split(command.replace("localhost:8000", f"127.0.0.1:{service.port}"))
        answer = json.loads(subprocess.run([*words, "--silent"], cwd=ROOT, check=True, capture_output=True).stdout)
    finally:
        service.close()
    assert answer["predictions"][0]["label"] == "7"
    if picture.endswith(".png"):
        assert answer | {"request_id": "…"} == shown


def test_every_file_that_the_readme_names_is_there() -> None:
    for name in set(re.findall(r"(?:docs|models|app)/[\w./-]+\.(?:png|jpg|onnx|py|md)", README)) - {
        "models/mine.onnx",
        "models/mine.html",
    }:
        assert Path(ROOT, name).is_file(), name
