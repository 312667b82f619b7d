"""Folders, zip files and manifests of real images, and the parts drawn from them."""

import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.duplicates import find_lookalikes
from training.errors import InputError
from training.folder import Files
from training.pixels import read_files
from training.sources import MAX_MEMBERS, divide, list_source, open_source


def write_images(root: Path, label: str, count: int, *, first: int = 0) -> list[Path]:
    """`count` images, each unlike any other number's."""
    folder = root / label
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, start=first):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(path)
    return paths


def divided(path: Path, *, seed: int) -> Files:
    listing = list_source(path)
    images, _ = read_files(listing, None)
    parts = divide(listing, find_lookalikes([one.fingerprint for one in images]), seed=seed)
    return tuple(replace(one, part=part) for one, part in zip(listing, parts, strict=True))


def zip_of(folder: Path, path: Path, *, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("prefix", ["", "pets/", "deep/er/pets/"])
def test_a_zip_is_read_like_its_folder_and_removed_afterwards(pets: Path, temporary: Path, prefix: str) -> None:
    path = zip_of(pets, pets.with_suffix(".ZIP"), prefix=prefix)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/._x", b"what macOS adds")
    with open_source(path) as (root, _):
        assert root.is_relative_to(temporary)
        assert Counter(one.label for one in list_source(root)) == {"cat": 20, "dog": 20}
        assert (root / "cat" / "0000.png").read_bytes() == (pets / "cat" / "0000.png").read_bytes()


def test_a_zip_with_a_train_folder_alone_keeps_its_part(pets: Path, temporary: Path) -> None:
    path = zip_of(pets, pets.with_suffix(".zip"), prefix="train/")
    with open_source(path) as (root, _):
        assert {one.part for one in list_source(root)} == {"train"}


def test_an_unpacked_zip_is_removed_when_the_work_fails(pets: Path, temporary: Path) -> None:
    path = zip_of(pets, pets.with_suffix(".zip"))
    with pytest.raises(KeyboardInterrupt), open_source(path):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "..\\evil.png"])
def test_a_zip_never_writes_outside_of_its_temporary_folder(tmp_path: Path, temporary: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("cat/1.png", b"x")
        archive.writestr("dog/1.png", b"x")
        archive.writestr(name, b"x")
    with open_source(tmp_path / "evil.zip") as (root, _):
        assert all(path.is_relative_to(root) for path in tmp_path.rglob("*evil.png"))
    assert not list(tmp_path.rglob("*evil.png"))


def test_a_zip_is_refused_by_its_stated_size_before_anything_is_written(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", bytes(20_000_000))
    monkeypatch.setattr("training.sources.MAX_UNPACKED_BYTES", 10_000_000)
    with (
        pytest.raises(InputError, match=r"1 members of 20 MB are more than 2,000,000 of 10 MB"),
        open_source(tmp_path / "bomb.zip"),
    ):
        pass


def test_a_zip_of_too_many_members_is_refused(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_MEMBERS > 1_300_000  # ImageNet fits
    monkeypatch.setattr("training.sources.MAX_MEMBERS", 2)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"cat/{number}.png", b"x")
    with pytest.raises(InputError, match="3 members of 0 MB are more than 2 of"), open_source(tmp_path / "many.zip"):
        pass


@pytest.mark.parametrize("damage", ["cut", "text", "missing", "content"])
def test_a_damaged_zip_is_refused_in_one_sentence(pets: Path, temporary: Path, damage: str) -> None:
    path = zip_of(pets, pets.with_suffix(".zip"))
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        position = content.index(b"\x89PNG") + 60
        flipped = content[:position] + b"\0\1\2\3" + content[position + 4 :]
        path.write_bytes({"cut": content[:-100], "text": b"no zip", "content": flipped}[damage])
    with pytest.raises(InputError, match=r"pets\.zip cannot be unpacked: .+"), open_source(path):
        pass


def test_a_compressed_zip_with_damaged_content_is_refused(tmp_path: Path, temporary: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pets.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", bytes(range(256)) * 40)
    content = bytearray((tmp_path / "pets.zip").read_bytes())
    content[45:60] = b"\xff" * 15
    (tmp_path / "pets.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"pets\.zip cannot be unpacked: .+"), open_source(tmp_path / "pets.zip"):
        pass


def test_a_zip_of_one_lone_file_is_refused(tmp_path: Path, temporary: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lone.zip", "w") as archive:
        archive.writestr("1.png", b"x")
    with pytest.raises(InputError, match="has no class folders"), open_source(tmp_path / "lone.zip") as (root, _):
        list_source(root)


def test_a_manifest_gives_labels_parts_and_groups_relative_to_itself(pets: Path) -> None:
    manifest = pets / "list.csv"
    manifest.write_text(
        "group,split,label,path,note\n"
        "g1,train,Größe 1,cat/0000.png,x\n"
        ",VAL,.hidden,cat/0001.png\n"
        f',test," two, words ",{pets / "cat" / "0002.png"}\n',
        encoding="utf-8-sig",
    )
    listing = list_source(manifest)
    assert [one.path for one in listing] == [pets / "cat" / f"000{number}.png" for number in range(3)]
    assert [one.label for one in listing] == ["Größe 1", ".hidden", "two, words"]
    assert [one.part for one in listing] == ["train", "validation", "test"]
    assert [one.group for one in listing] == ["g1", "", ""]


def test_a_manifest_with_semicolons_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path;label\na,b.png;cat\n")
    assert [(one.path.name, one.label) for one in list_source(tmp_path / "list.csv")] == [("a,b.png", "cat")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has no columns path and label: its first line must be path,label"),
        (b"path,class\na.png,cat\n", "has no columns path and label: its first line must be path,label"),
        (b"path,label\n", "lists no files"),
        (b"path,label\na.png,cat\nb.png,\n", "line 3: a file needs both a path and a label"),
        (b"path,label\na.png\n", "line 2: a file needs both a path and a label"),
        (b"path,label,split\na.png,cat,dev\n", "line 2: split is 'dev', expected train, val or test"),
        (b"path,label,split\na.png,cat,test\nb.png,cat,\n", "has a split for some files and none for others"),
        ("path,label\na.png,é\n".encode("latin-1"), "cannot be read as CSV UTF-8: 'utf-8' codec"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        list_source(tmp_path / "list.csv")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing", "missing.csv", "file.txt"])
def test_what_is_neither_folder_nor_manifest_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(InputError, match=r"does not exist|is not a folder"):
        list_source(tmp_path / name)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no class folders with images"):
        list_source(tmp_path)


def test_parts_are_drawn_by_class_and_the_same_again_by_the_same_seed(pets: Path) -> None:
    listing = divided(pets, seed=1)
    counts = Counter((one.part, one.label) for one in listing)
    assert counts == {
        (part, label): n for part, n in (("train", 16), ("validation", 2), ("test", 2)) for label in ("cat", "dog")
    }
    assert divided(pets, seed=1) == listing != divided(pets, seed=2)


def test_copies_and_lookalikes_are_drawn_to_one_side(pets: Path) -> None:
    for path in sorted((pets / "cat").iterdir()):
        with Image.open(path) as image:
            image.save(path.with_suffix(".bmp"))
            image.resize((48, 48), Image.Resampling.BICUBIC).save(path.with_suffix(".jpg"), quality=95)
    for seed in range(5):
        parts: dict[str, set[str | None]] = {}
        for one in divided(pets, seed=seed):
            parts.setdefault(one.path.stem, set()).add(one.part)
        assert all(len(sides) == 1 for sides in parts.values())


def test_a_group_of_the_manifest_is_drawn_to_one_side(pets: Path) -> None:
    rows = [(path.relative_to(pets), path.parent.name, number % 7) for number, path in enumerate(sorted(pets.rglob("*.png")))]
    (pets / "list.csv").write_text("path,label,group\n" + "".join(f"{path},{label},{group}\n" for path, label, group in rows))
    sides = {(one.group, one.part) for one in divided(pets / "list.csv", seed=0)}
    assert len(sides) == 7
    assert {part for _, part in sides} == {"train", "validation", "test"}


def test_given_parts_are_kept_and_a_missing_validation_is_drawn_from_train(tmp_path: Path) -> None:
    write_images(tmp_path / "train", "cat", 10)
    write_images(tmp_path / "train", "dog", 10, first=10)
    tests = write_images(tmp_path / "test", "cat", 5, first=20)
    listing = divided(tmp_path, seed=0)
    assert [one.path for one in listing if one.part == "test"] == tests
    assert Counter(one.part for one in listing) == {"train": 18, "validation": 2, "test": 5}
