import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.conftest import ROOT

ALLOWED = {"app", "app.spec", "app.image", "app.classifier", "app.drift", "app.errors", "app.samples"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", sorted((ROOT / "training").rglob("*.py")), ids=lambda path: path.name)
def test_training_takes_from_the_service_only_what_it_must_share(path: Path) -> None:
    assert {name for name in imports(path) if name.split(".")[0] == "app"} <= ALLOWED


@pytest.mark.parametrize("path", sorted((ROOT / "app").rglob("*.py")), ids=lambda path: path.name)
def test_the_service_never_needs_training_or_torch(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"training", "torch"}
