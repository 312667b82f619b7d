"""The data set on disk: which files there are, what each is called, and which part of the work each is for.

    DATA/<label>/*                    all parts are drawn by seed, class by class
    DATA/{train,val,test}/<label>/*   its own parts; a missing val is drawn from train, a missing test stays empty

Labels are folder names. Hidden files and folders are ignored; folders inside a class folder are searched too.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.errors import InputError, refusing

Part = Literal["train", "validation", "test"]

VALIDATION_SHARE = 0.1  # of each class of the training images; epochs and thresholds are chosen on it
TEST_SHARE = 0.1  # of each class, where the folder has no parts of its own
MIN_PER_CLASS = 3  # one image for each part

PART_FOLDERS: dict[str, Part] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class LabelledFile:
    """A file and its label, its part (None: to be drawn) and its group, which is never parted (empty: it stands alone)."""

    path: Path
    label: str
    part: Part | None = None
    group: str = ""


Files = tuple[LabelledFile, ...]


def list_folder(root: Path) -> Files:
    """The labelled files under `root`, with their parts if it comes in parts; the order depends on nothing but their names.

    Raises: InputError.
    """
    folders = _subfolders(root)
    if not all(folder.name in PART_FOLDERS and _subfolders(folder) for folder in folders):
        return _list_files(root, None)
    return tuple(file for folder in folders for file in _list_files(folder, PART_FOLDERS[folder.name]))


def check_labels(root: Path, files: Files) -> tuple[str, ...]:
    """The labels of the files to train on (or to draw all parts from), which must be those of all others too.

    Raises: InputError.
    """
    counts = Counter(file.label for file in files if file.part in (None, "train"))
    if not counts:
        raise InputError(f"{root} has no class folders with images: expected {root.name}/<label>/<image>")
    if len(counts) == 1:
        raise InputError(f"{root} has only one class ({next(iter(counts))}): a classifier needs at least two")
    for label, count in counts.items():
        if count < MIN_PER_CLASS:
            raise InputError(f"class {label!r} has only {count} of the {MIN_PER_CLASS} images that a class needs")
    unknown = sorted({file.label for file in files} - set(counts))
    if unknown:
        raise InputError(f"{root} has classes that are not in its train folder: {', '.join(unknown)}")
    return tuple(sorted(counts))


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        fault = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {fault}: give a folder that holds one folder per class")
    with refusing(f"{folder} cannot be read"):
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _list_files(folder: Path, part: Part | None) -> Files:
    found = []
    for class_folder in _subfolders(folder):
        label = unicodedata.normalize("NFC", class_folder.name)  # macOS writes é as two characters
        found += [LabelledFile(path, label, part) for path in walk(class_folder)]
    return tuple(sorted(found, key=lambda file: (file.label, file.path.as_posix())))


def walk(folder: Path) -> Iterator[Path]:
    """All files in a folder and in those inside it, but for hidden ones. Raises: InputError."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error

    for directory, children, names in os.walk(folder, onerror=refuse):
        children[:] = [child for child in children if not child.startswith(".")]
        yield from (Path(directory, name) for name in names if not name.startswith("."))
