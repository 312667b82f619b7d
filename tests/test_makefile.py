"""The Makefile's recipes, also of those that CI does not run, are sound shell."""

import re
import subprocess

import pytest

from tests.service import ROOT

TARGETS = re.findall(r"^([a-z][a-z-]*):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("target", TARGETS)
def test_a_targets_recipes_are_sound_shell(target: str) -> None:
    command = ["make", "--dry-run", "--always-make", target]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    checked = subprocess.run(["sh", "-n"], input=shown.stdout, capture_output=True, text=True, check=False)
    assert not checked.stderr
