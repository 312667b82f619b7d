"""Data sets read whole, audited and divided, as a training and a measurement read them."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.image import decode, fit
from app.spec import Golden, InputSpec, ModelSpec
from tests.models import colour_spec
from tests.training.test_sources import write_images, zip_of
from tests.training.test_videos import write_video
from training.data_set import choose_goldens, read_data_set, read_others, read_samples
from training.errors import InputError

SPEC = InputSpec(height=32, width=32, channels=3)


def pets_model() -> ModelSpec:
    golden = Golden(image="", probabilities=(0.5, 0.5), tolerance=0.01)
    return colour_spec(labels=("cat", "dog"), input=SPEC, goldens=(golden,))


def test_a_written_split_is_a_manifest_that_gives_the_same_parts(pets: Path, tmp_path: Path) -> None:
    split = tmp_path / "elsewhere" / "splits.csv"
    first = read_data_set(pets, SPEC, seed=1, split=split)
    with split.open(encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["path", "label", "split", "group"]
    again = read_data_set(split, SPEC, seed=9)
    assert again.labels == first.labels == ("cat", "dog")
    assert again.test is not None
    assert first.test is not None
    assert [path.resolve() for path in again.test.paths] == list(first.test.paths)
    assert (len(again.train), len(again.validation), len(again.test)) == (32, 4, 4)


def test_the_split_of_a_zip_is_not_written_since_its_files_go_away(pets: Path, tmp_path: Path, temporary: Path) -> None:
    path = zip_of(pets, pets.with_suffix(".zip"))
    with pytest.raises(InputError, match="unpack it to write"):
        read_data_set(path, SPEC, seed=0, split=tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


def test_a_split_that_cannot_be_written_says_so(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file cannot be written to"):
        read_data_set(pets, SPEC, seed=0, split=tmp_path / "file" / "s.csv")


def test_the_frames_of_a_video_are_images_of_its_class_on_one_side(pets: Path, tmp_path: Path, temporary: Path) -> None:
    for number in range(3):
        write_video(pets / "fish" / f"{number}.mp4", seconds=4, colour=(0, 60 * number, 100), left=16 * number)
    (pets / "fish" / "broken.avi").write_bytes(b"no video")
    data = read_data_set(pets, SPEC, seed=0, split=tmp_path / "split.csv")
    assert data.test is not None
    parts = {name: part.paths for name, part in (("train", data.train), ("val", data.validation), ("test", data.test))}
    frames = Counter((path.parent.name, part) for part, paths in parts.items() for path in paths if path.suffix == ".jpg")
    assert sorted(frames.values()) == [4, 4, 4]
    assert len({video for video, _ in frames}) == 3
    assert [one.paths for one in data.audit.findings if one.kind == "unreadable"] == [("fish/broken.avi",)]
    with (tmp_path / "split.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == "fish"]
    assert sorted(row["path"] for row in rows) == [f"pets/fish/{number}.mp4" for number in range(3)]
    assert {row["split"] for row in rows} == {"train", "validation", "test"}


@pytest.mark.parametrize(("part", "n"), [("all", 40), ("test", 4), ("train", 32)])
def test_one_part_or_all_are_the_images_that_training_takes(pets: Path, part: str, n: int) -> None:
    data, samples = read_data_set(pets, SPEC, seed=0), read_samples(pets, part, pets_model())  # type: ignore[arg-type]
    assert len(samples) == n
    if part != "all":
        of_training = data.test if part == "test" else data.train
        assert of_training is not None
        assert (samples.paths, samples.digest) == (of_training.paths, of_training.digest)


def test_at_most_so_many_images_are_drawn_as_asked_for(pets: Path) -> None:
    assert len(read_samples(pets, "train", pets_model(), limit=5)) == len(read_samples(pets, "all", pets_model(), limit=5)) == 5


def test_a_test_folder_alone_can_be_measured_on_and_nothing_is_drawn_from_it(tmp_path: Path) -> None:
    write_images(tmp_path / "test", "cat", 3)
    assert len(read_samples(tmp_path, "test", pets_model())) == 3
    with pytest.raises(InputError, match="has no validation images"):
        read_samples(tmp_path, "validation", pets_model())


def test_one_class_or_an_unknown_class_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "one", "cat", 5)
    with pytest.raises(InputError, match=r"has only one class \(cat\)"):
        read_data_set(tmp_path / "one", SPEC, seed=0)
    for part, label in (("train", "cat"), ("train", "dog"), ("test", "cow")):
        write_images(tmp_path / "two" / part, label, 5)
    with pytest.raises(InputError, match="classes that are not in its train folder: cow"):
        read_data_set(tmp_path / "two", SPEC, seed=0)


def test_files_that_vanish_while_they_are_read_are_skipped_and_a_class_left_too_small_is_refused(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanishing, read_bytes = set(sorted(pets.glob("cat/*"))[:5]), Path.read_bytes

    def read_or_vanish(path: Path) -> bytes:
        if path in vanishing:
            path.unlink()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read_or_vanish)
    data = read_data_set(pets, SPEC, seed=0)
    assert str(data.audit) == "audit: 5 unreadable (warning)"
    assert data.audit.findings[0].detail == "cannot be read: No such file or directory"
    vanishing |= set(sorted(pets.glob("cat/*"))[:13])
    with pytest.raises(InputError, match="class 'cat' has only 2 of the 3 images that a class needs"):
        read_data_set(pets, SPEC, seed=0)


def test_broken_files_take_no_place_in_the_parts(pets: Path) -> None:
    for path in sorted(pets.glob("cat/*"))[3:]:
        path.write_bytes(b"no image")
    data = read_data_set(pets, SPEC, seed=0)
    assert data.test is not None
    assert [(part.classes == 0).sum() for part in (data.train, data.validation, data.test)] == [1, 1, 1]


def test_a_picture_in_two_parts_of_the_users_own_is_a_leak_and_one_drawn_by_us_is_not(tmp_path: Path, pets: Path) -> None:
    (pets / "cat" / "copy.png").write_bytes((pets / "cat" / "0000.png").read_bytes())
    assert ("note", "duplicate") in read_data_set(pets, SPEC, seed=0).audit.by_kind()
    for label in ("cat", "dog"):
        write_images(tmp_path / "own" / "train", label, 5, first=5 * (label == "dog"))
    write_images(tmp_path / "own" / "test", "cat", 1)
    audit = read_data_set(tmp_path / "own", SPEC, seed=0).audit
    leak = "test/cat/0000.png, train/cat/0000.png: the same picture is in test and train"
    assert audit.by_kind() == {("error", "leak"): [leak]}
    assert str(audit) == "audit: 1 leak (error)"


def test_other_images_may_lie_anywhere_in_a_folder(tmp_path: Path) -> None:
    first, second = write_images(tmp_path / "other", "", 1)[0], write_images(tmp_path / "other", "a/b", 1, first=1)[0]
    pixels = read_others(tmp_path / "other", SPEC)["other"]
    for one, path in zip(pixels, (first, second), strict=True):
        np.testing.assert_array_equal(one, np.asarray(Image.open(path)))
    assert read_others(None, SPEC) == {}
    with pytest.raises(InputError, match="gone does not exist"):
        read_others(tmp_path / "gone", SPEC)


def test_goldens_of_files_that_are_gone_are_made_of_their_pixels(pets: Path) -> None:
    samples = read_samples(pets, "all", pets_model())
    whole = choose_goldens(samples)
    assert whole == [samples.paths[0].read_bytes(), samples.paths[20].read_bytes()]
    samples.paths[0].unlink()
    again = choose_goldens(samples)
    assert again[0] != whole[0]
    np.testing.assert_array_equal(fit(decode(again[0], SPEC), SPEC), samples.pixels[0])
    assert again[1] == whole[1]
