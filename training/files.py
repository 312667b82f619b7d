"""Files that are whole or not there: written beside their place, and only then put into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import InputError, TrainingError


@contextmanager
def unfinished_beside(out: Path) -> Iterator[Path]:
    """The path of a temporary file in the folder of `out`, made if missing; whatever happens, it is gone afterwards.

    Raises: InputError when nothing can be written there.
    """
    unfinished = out.with_name(f".{out.name}.unfinished")
    if out.exists() and not out.is_file():
        raise InputError(f"{out} is {'a folder' if out.is_dir() else 'a device'}: name a file to write")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
    except OSError as error:
        raise InputError(f"{out.parent} cannot be written to: {error.strerror}") from error
    try:
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(out: Path, content: bytes) -> None:
    """Writes a file in one step.

    Raises: TrainingError when that fails; what was there before is there still.
    """
    with unfinished_beside(out) as unfinished:
        write_bytes(unfinished, content)
        unfinished.replace(out)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file where it stands. Raises: TrainingError."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from error
