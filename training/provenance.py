"""Where a model comes from: the commit and the libraries that made it."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app.spec import Provenance

LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")  # whose version can change a result


def provenance(recipe: str, **known: Any) -> Provenance:
    """What this code, these libraries and `recipe` made; `known` are other fields of it."""
    libraries = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    fields: dict[str, Any] = {"data_digest": "unknown", "n_training_images": 0, "seed": 0, "libraries": libraries, **known}
    return Provenance(recipe=recipe, git_commit=_commit(), **fields)


def _commit() -> str:
    """The commit of this code, with "-dirty" when the code was changed since; "unknown" outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "--", "app", "training") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    root = Path(__file__).parent.parent
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
