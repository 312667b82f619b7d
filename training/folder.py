"""The data set on disk: which files there are, what each is called, and which part of the work each is for.

    DATA/<label>/*                    all parts are drawn by seed, class by class
    DATA/{train,val,test}/<label>/*   its own parts; a missing val is drawn from train, a missing test stays empty

Labels are folder names. Hidden files and folders are ignored; folders inside a class folder are searched too.
"""

import os
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from training.errors import InputError

Part = Literal["train", "validation", "test"]

VALIDATION_SHARE = 0.1  # of each class of the training images; epochs and thresholds are chosen on it
TEST_SHARE = 0.1  # of each class, where the folder has no parts of its own
MIN_PER_CLASS = 3  # one image for each part

_PART_FOLDERS: dict[str, Part] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class LabelledFile:
    """One file and the label its folder gives it."""

    path: Path
    label: str


Files = tuple[LabelledFile, ...]


@dataclass(frozen=True)
class Folder:
    """A data set, with its files in the parts they are for."""

    root: Path
    labels: tuple[str, ...]
    train: Files
    validation: Files
    test: Files

    def part(self, part: Part) -> Files:
        """The files of one part."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return parts[part]


def read_folder(root: Path, *, seed: int) -> Folder:
    """Finds the labelled files under `root` and their parts; the same seed always draws the same parts.

    Raises: InputError.
    """
    parts = _read_parts(root)
    if parts and not parts.get("train"):
        raise InputError(f"{root} has no images in a train folder: expected {root.name}/train/<label>/<image>")
    train = parts.get("train") or _list_files(root)
    labels = _check_labels(root, train)
    validation, test = parts.get("validation", ()), parts.get("test", ())
    _check_known(root, labels, (*validation, *test))
    if not parts:
        test, train = _draw(train, TEST_SHARE, seed)
    if not validation:
        validation, train = _draw(train, VALIDATION_SHARE, seed + 1)
    return Folder(root, labels, train, validation, test)


def read_part(root: Path, part: Part | Literal["all"], *, seed: int) -> Files:
    """The files of one part, or of all, as `read_folder` parts them.

    Raises: InputError.
    """
    parts = _read_parts(root)
    if part == "all":
        files = tuple(file for of_part in parts.values() for file in of_part) or _list_files(root)
    else:
        files = parts.get(part) or read_folder(root, seed=seed).part(part)
    if not files:
        raise InputError(f"{root} has no {part} images: expected class folders with images, or take another --split")
    return files


def _read_parts(root: Path) -> dict[Part, Files]:
    """The files of a data set that comes in parts; empty when `root` holds the class folders itself."""
    folders = _subfolders(root)
    if not all(folder.name in _PART_FOLDERS and _subfolders(folder) for folder in folders):
        return {}
    parts: dict[Part, Files] = {}
    for folder in folders:
        part = _PART_FOLDERS[folder.name]
        parts[part] = (*parts.get(part, ()), *_list_files(folder))
    return parts


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except FileNotFoundError as error:
        raise InputError(f"{folder} does not exist: give a folder that holds one folder per class") from error
    except NotADirectoryError as error:
        raise InputError(f"{folder} is not a folder: give a folder that holds one folder per class") from error
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error


def _list_files(folder: Path) -> Files:
    """The files of every class folder, in an order that depends on nothing but their names."""
    found = []
    for class_folder in _subfolders(folder):
        label = unicodedata.normalize("NFC", class_folder.name)  # macOS writes é as two characters
        for directory, children, names in os.walk(class_folder):
            children[:] = [child for child in children if not child.startswith(".")]
            found += [LabelledFile(Path(directory, name), label) for name in names if not name.startswith(".")]
    return tuple(sorted(found, key=lambda file: (file.label, file.path.as_posix())))


def _check_labels(root: Path, files: Files) -> tuple[str, ...]:
    counts = Counter(file.label for file in files)
    if not counts:
        raise InputError(f"{root} has no class folders with images: expected {root.name}/<label>/<image>")
    if len(counts) == 1:
        raise InputError(f"{root} has only one class ({next(iter(counts))}): a classifier needs at least two")
    for label, count in counts.items():
        if count < MIN_PER_CLASS:
            raise InputError(f"class {label!r} has only {count} of the {MIN_PER_CLASS} images that a class needs")
    return tuple(sorted(counts))


def _check_known(root: Path, labels: tuple[str, ...], files: Files) -> None:
    unknown = sorted({file.label for file in files} - set(labels))
    if unknown:
        raise InputError(f"{root} has classes that are not in its train folder: {', '.join(unknown)}")


def _draw(files: Files, share: float, seed: int) -> tuple[Files, Files]:
    """Parts `files` into a share drawn evenly from each class, at least one image of each, and the rest."""
    classes: defaultdict[str, list[LabelledFile]] = defaultdict(list)
    for file in files:
        classes[file.label].append(file)
    drawn: set[LabelledFile] = set()
    for number, label in enumerate(sorted(classes)):
        of_class = classes[label]
        order = np.random.default_rng([seed, number]).permutation(len(of_class))
        drawn.update(of_class[index] for index in order[: max(1, round(share * len(of_class)))])
    return tuple(file for file in files if file in drawn), tuple(file for file in files if file not in drawn)
