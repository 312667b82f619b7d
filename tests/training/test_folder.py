import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from training.errors import InputError
from training.folder import Files, Part, check_labels
from training.sources import divide, list_source


def fill(root: Path, **classes: int) -> Path:
    for label, count in classes.items():
        (root / label).mkdir(parents=True)
        for number in range(count):
            (root / label / f"{number}.png").touch()
    return root


def count(files: Files, label: str) -> int:
    return sum(file.label == label for file in files)


@dataclass(frozen=True)
class Folder:
    labels: tuple[str, ...]
    train: Files
    validation: Files
    test: Files


def read_folder(root: Path, *, seed: int) -> Folder:
    """The parts of files that are like nothing else."""
    listing = list_source(root)
    labels = check_labels(root, listing)
    drawn = divide(listing, np.arange(len(listing)), seed=seed)
    pairs = list(zip(listing, drawn, strict=True))
    return Folder(labels, *(tuple(one for one, of_one in pairs if of_one == part) for part in get_args(Part)))


def test_a_folder_without_parts_is_parted_class_by_class(tmp_path: Path) -> None:
    folder = read_folder(fill(tmp_path, cat=100, dog=20), seed=0)
    assert [count(part, "cat") for part in (folder.train, folder.validation, folder.test)] == [81, 9, 10]
    assert [count(part, "dog") for part in (folder.train, folder.validation, folder.test)] == [16, 2, 2]


def test_no_file_is_in_two_parts_and_none_is_lost(tmp_path: Path) -> None:
    folder = read_folder(fill(tmp_path, cat=37, dog=5), seed=3)
    paths = [file.path for part in (folder.train, folder.validation, folder.test) for file in part]
    assert sorted(paths) == sorted(tmp_path.glob("*/*"))


def test_a_seed_always_draws_the_same_parts_and_another_draws_others(tmp_path: Path) -> None:
    fill(tmp_path, cat=50, dog=50)
    assert read_folder(tmp_path, seed=1) == read_folder(tmp_path, seed=1)
    assert read_folder(tmp_path, seed=1).test != read_folder(tmp_path, seed=2).test


def test_the_smallest_class_has_an_image_in_every_part(tmp_path: Path) -> None:
    folder = read_folder(fill(tmp_path, cat=3, dog=50), seed=0)
    assert [count(part, "cat") for part in (folder.train, folder.validation, folder.test)] == [1, 1, 1]


def test_a_test_folder_is_left_whole_and_validation_is_drawn_from_train(digits: Path) -> None:
    folder = read_folder(digits, seed=0)
    assert (len(folder.train), len(folder.validation), len(folder.test)) == (70, 10, 50)
    assert {file.path.parent.parent.name for file in folder.validation} == {"train"}
    assert {file.path.parent.parent.name for file in folder.test} == {"test"}


def test_a_val_folder_is_the_validation_part(tmp_path: Path) -> None:
    fill(tmp_path / "train", cat=10, dog=10)
    fill(tmp_path / "val", cat=4, dog=4)
    folder = read_folder(tmp_path, seed=0)
    assert (len(folder.train), len(folder.validation), len(folder.test)) == (20, 8, 0)


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    assert read_folder(fill(tmp_path, bus=5, test=5), seed=0).labels == ("bus", "test")


def test_labels_may_have_spaces_and_any_letters(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    folder = read_folder(fill(tmp_path, **{"ice cream": 5, "猫": 5, decomposed: 5}), seed=0)
    assert folder.labels == ("café", "ice cream", "猫")


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    fill(tmp_path, cat=5, dog=5, **{".cache": 5})
    (tmp_path / "cat" / ".DS_Store").touch()
    (tmp_path / "README.txt").touch()
    assert len(list_source(tmp_path)) == 10


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ({}, "has no class folders with images"),
        ({"cat": 5}, "has only one class (cat)"),
        ({"cat": 5, "dog": 2}, "class 'dog' has only 2 of the 3 images"),
        ({"cat": 0, "dog": 0}, "has no class folders with images"),
    ],
)
def test_a_folder_that_cannot_be_learned_from_is_refused(tmp_path: Path, classes: dict[str, int], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        read_folder(fill(tmp_path, **classes), seed=0)
    assert sentence in str(caught.value)


def test_a_test_class_that_was_not_trained_on_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "train", cat=5, dog=5)
    fill(tmp_path / "test", cow=5)
    with pytest.raises(InputError, match="not in its train folder: cow"):
        read_folder(tmp_path, seed=0)
