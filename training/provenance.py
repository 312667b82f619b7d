"""Where a model comes from: the commit and the libraries that made it."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Python and the libraries whose version can change a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def git_commit() -> str:
    """The commit of this code, with "-dirty" when the code was changed since; "unknown" outside a repository."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return "unknown"
    return f"{commit}-dirty" if _git("status", "--porcelain", "--", "app", "training") else commit


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()
