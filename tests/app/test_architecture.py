"""The shape of app/: imports point one way, settings alone read the environment, serving loads no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.service import ROOT

APP = ROOT / "app"
# Each file imports only from files before it.
LAYERS = (
    "__init__",
    "errors",
    "spec",
    "drift",
    "ink",
    "image",
    "classifier",
    "threads",
    "memory",
    "settings",
    "metrics",
    "cache",
    "board",
    "engine",
    "tracing",
    "explain",
    "samples",
    "schemas",
    "problem",
    "body",
    "keys",
    "service",
    "change",
    "access",
    "answers",
    "routes",
    "tensors",
    "open_inference",
    "openapi",
    "connection",
    "shortcut",
    "pages",
    "logs",
    "bench",
    "main",
    "client",
    "lines",
    "predict",
    "server",
    "workers",
    "serve",
    "__main__",
)
NEVER_IMPORTED = {"torch", "torchvision", "onnx", "onnxscript", "training", "tests"}


def tree_of(name: str) -> ast.Module:
    return ast.parse((APP / f"{name}.py").read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported, wherever in the file; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name: str) -> set[str]:
    """The files of app/ that a file imports."""
    parts = [dotted.split(".") for dotted in imports(tree_of(name))]
    return {part[1] if part[1] in LAYERS else "__init__" for part in parts if part[0] == "app" and len(part) > 1}


def test_the_order_names_every_file() -> None:
    assert {path.stem for path in APP.glob("*.py")} == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_imports_only_from_files_before_it(name: str) -> None:
    assert own_imports(name) <= set(LAYERS[: LAYERS.index(name)])


@pytest.mark.parametrize("name", LAYERS)
def test_no_file_imports_what_only_training_needs(name: str) -> None:
    assert not {dotted.split(".")[0] for dotted in imports(tree_of(name))} & NEVER_IMPORTED


@pytest.mark.parametrize("name", LAYERS)
def test_settings_alone_read_the_environment(name: str) -> None:
    attributes = {node.attr for node in ast.walk(tree_of(name)) if isinstance(node, ast.Attribute)}
    imported = {dotted.rpartition(".")[2] for dotted in imports(tree_of(name))}
    assert name in {"settings", "__init__"} or not (attributes | imported) & {"environ", "environb", "getenv"}


def test_the_packages_init_only_sets_a_variable() -> None:
    uses = [ast.unparse(node.func) for node in ast.walk(tree_of("__init__")) if isinstance(node, ast.Call)]
    assert uses == ["os.environ.setdefault"]


@pytest.mark.parametrize("name", LAYERS)
def test_no_file_keeps_a_global_that_changes(name: str) -> None:
    assert not [node for node in ast.walk(tree_of(name)) if isinstance(node, ast.Global)]


def test_the_application_loads_nothing_that_only_training_needs() -> None:
    code = "import sys, app.main; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "onnxruntime" in loaded
    assert not set(loaded) & NEVER_IMPORTED
