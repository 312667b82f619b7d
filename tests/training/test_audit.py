"""The audit of real folders, each with one thing wrong."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.test_sources import write_images
from tests.training.test_videos import write_video
from training.audit import Finding, format_audit, run_audit
from training.errors import InputError


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A clean data set of two classes."""
    write_images(tmp_path / "pets", "cat", 4)
    write_images(tmp_path / "pets", "dog", 4, first=4)
    return tmp_path / "pets"


def findings(root: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(one.severity, one.kind, one.paths) for one in run_audit(root).findings]


def test_a_clean_folder_has_no_findings(pets: Path) -> None:
    audit = run_audit(pets)
    assert (audit.n_files, audit.n_images, audit.classes, audit.findings) == (8, 8, {"cat": 4, "dog": 4}, ())
    assert audit.is_clean
    assert format_audit(audit) == "8 files, 8 images that can be read, 2 classes\n\nnothing found"


def test_files_that_cannot_be_read_are_named_with_the_reason(pets: Path) -> None:
    good = (pets / "cat" / "0000.png").read_bytes()
    (pets / "cat" / "empty.png").touch()
    (pets / "cat" / "cut.png").write_bytes(good[: len(good) // 2])
    (pets / "cat" / "notes.txt").write_text("no image")
    (pets / "cat" / "gone.png").symlink_to(pets / "nowhere.png")
    audit = run_audit(pets)
    assert [(one.kind, one.paths) for one in audit.findings] == [
        ("empty_file", ("cat/empty.png",)),
        ("unreadable", ("cat/cut.png",)),
        ("unreadable", ("cat/gone.png",)),
        ("unreadable", ("cat/notes.txt",)),
    ]
    assert {one.severity for one in audit.findings} == {"warning"}
    assert "damaged or truncated" in audit.findings[1].detail
    assert audit.findings[2].detail == "cannot be read: No such file or directory"
    assert (audit.n_files, audit.n_images) == (12, 8)


def test_an_image_of_too_many_pixels_is_found_by_its_header(pets: Path) -> None:
    Image.new("1", (8000, 7000)).save(pets / "cat" / "large.png")
    assert findings(pets) == [("warning", "unreadable", ("cat/large.png",))]


@pytest.mark.parametrize("name", ["photo.jpg", "photo.mp4.PNX", "photo"])
def test_a_suffix_that_is_not_the_contents_is_noted(pets: Path, name: str) -> None:
    (pets / "cat" / "0000.png").rename(pets / "cat" / name)
    audit = run_audit(pets)
    assert audit.findings == (Finding("wrong_suffix", "note", (f"cat/{name}",), "the content is PNG"),)
    assert audit.is_clean


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_an_animation_is_found_and_its_frames_counted(pets: Path, suffix: str) -> None:
    frames = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8)) for n in (90, 91, 92)]
    frames[0].save(pets / "cat" / f"moving{suffix}", save_all=True, append_images=frames[1:])
    (finding,) = run_audit(pets).findings
    assert (finding.kind, finding.detail) == ("many_frames", "of 3 frames only the first is used")


def test_tiny_and_elongated_images_are_found(pets: Path) -> None:
    Image.new("RGB", (7, 100)).save(pets / "cat" / "tiny.png")
    Image.new("RGB", (1001, 100)).save(pets / "cat" / "long.png")
    Image.new("RGB", (1000, 100)).save(pets / "cat" / "fine.png")
    assert findings(pets) == [("warning", "extreme_size", (f"cat/{name}.png",)) for name in ("long", "tiny")]


def test_a_copy_in_another_format_is_a_duplicate_and_a_resized_one_nearly(pets: Path) -> None:
    with Image.open(pets / "cat" / "0000.png") as image:
        image.save(pets / "cat" / "copy.bmp")
    with Image.open(pets / "dog" / "0004.png") as image:
        image.resize((48, 48), Image.Resampling.BICUBIC).save(pets / "dog" / "resized.jpg", quality=95)
    assert findings(pets) == [
        ("note", "duplicate", ("cat/0000.png", "cat/copy.bmp")),
        ("note", "near_duplicate", ("dog/0004.png", "dog/resized.jpg")),
    ]


def test_a_photo_and_its_lossless_copy_are_equal_whatever_their_size(pets: Path) -> None:
    with Image.open(pets / "cat" / "0000.png") as image:
        image.resize((1200, 900)).save(pets / "cat" / "large.jpg")
    with Image.open(pets / "cat" / "large.jpg") as image:
        image.save(pets / "cat" / "large.png")
    assert ("note", "duplicate", ("cat/large.jpg", "cat/large.png")) in findings(pets)


def test_one_picture_under_two_labels_is_an_error(pets: Path) -> None:
    (pets / "dog" / "same.png").write_bytes((pets / "cat" / "0000.png").read_bytes())
    (finding,) = run_audit(pets).findings
    assert (finding.severity, finding.kind) == ("error", "two_labels")
    assert finding.detail == "the same picture is called cat and dog"


@pytest.mark.parametrize(("suffix", "kind", "severity"), [(".png", "leak", "error"), (".jpg", "near_leak", "warning")])
def test_a_picture_in_train_and_test_is_a_leak(tmp_path: Path, suffix: str, kind: str, severity: str) -> None:
    for first, part in ((0, "train"), (8, "test")):
        write_images(tmp_path / part, "cat", 4, first=first)
        write_images(tmp_path / part, "dog", 4, first=first + 4)
    with Image.open(tmp_path / "train" / "cat" / "0001.png") as image:
        image.save(tmp_path / "test" / "cat" / f"leaked{suffix}", quality=95)
    assert findings(tmp_path) == [(severity, kind, (f"test/cat/leaked{suffix}", "train/cat/0001.png"))]


def test_classes_that_training_refuses_and_uneven_ones_are_found(pets: Path) -> None:
    write_images(pets, "cow", 2, first=100)
    write_images(pets, "cat", 25, first=200)
    (pets / "cow" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    details = {one.kind: one.detail for one in run_audit(pets).findings}
    assert details["small_class"] == "class 'cow' has 2 of the 3 images that it needs"
    assert details["imbalance"] == "class 'cat' has 29 images, class 'cow' 2"


def test_only_the_images_to_train_on_make_a_class_large_enough(tmp_path: Path) -> None:
    for number, (part, count) in enumerate((("train/cat", 5), ("train/dog", 2), ("test/dog", 5))):
        write_images(tmp_path, part, count, first=10 * number)
    (finding,) = run_audit(tmp_path).findings
    assert finding.detail == "class 'dog' has 2 of the 3 images that it needs"


def test_one_class_is_an_error_and_is_audited_all_the_same(tmp_path: Path) -> None:
    write_images(tmp_path, "cat", 3)
    (tmp_path / "cat" / "empty.png").touch()
    assert [kind for _, kind, _ in findings(tmp_path)] == ["one_class", "empty_file"]


def test_only_broken_images_give_an_audit_of_no_images(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    audit = run_audit(tmp_path)
    assert (audit.n_files, audit.n_images, audit.classes) == (2, 0, {})
    assert [one.kind for one in audit.findings] == ["small_class"] * 2 + ["unreadable"] * 2


def test_hidden_files_are_noted(pets: Path) -> None:
    (pets / ".DS_Store").touch()
    (pets / "cat" / ".thumbs").mkdir()
    (pets / "cat" / ".thumbs" / "1.png").touch()
    assert findings(pets) == [
        ("note", "hidden_file", (".DS_Store",)),
        ("note", "hidden_file", ("cat/.thumbs/1.png",)),
    ]


def test_labels_may_have_spaces_dots_and_any_letters(tmp_path: Path) -> None:
    for number, label in enumerate(("größe 1", "猫", "a.b, c")):
        write_images(tmp_path, label, 3, first=10 * number)
    audit = run_audit(tmp_path)
    assert (set(audit.classes), audit.findings) == ({"größe 1", "猫", "a.b, c"}, ())


def test_the_frames_of_one_video_are_no_duplicates_but_a_broken_video_is_found(pets: Path) -> None:
    write_video(pets / "cat" / "clip.mp4")
    (pets / "cat" / "broken.mp4").write_bytes(b"no video")
    audit = run_audit(pets)
    assert [(one.kind, one.paths) for one in audit.findings] == [("unreadable", ("cat/broken.mp4",))]
    assert audit.classes == {"cat": 7, "dog": 4}


def test_only_broken_videos_give_an_audit_of_no_images(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "broken.mp4").write_bytes(b"no video")
    assert findings(tmp_path) == [
        ("error", "one_class", ()),
        ("error", "small_class", ()),
        ("warning", "unreadable", ("cat/broken.mp4",)),
    ]


def test_a_file_that_vanishes_while_it_is_audited_is_named(pets: Path) -> None:
    (pets / "list.csv").write_text("path,label\ncat/0000.png,cat\ncat/9999.png,cat\n")
    assert ("warning", "unreadable", ("cat/9999.png",)) in findings(pets / "list.csv")


def test_an_empty_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^.* has no class folders with images: expected .*/<label>/<image>$"):
        run_audit(tmp_path)


def test_the_table_counts_each_kind_and_shows_its_first_examples(pets: Path) -> None:
    for number in range(5):
        (pets / "cat" / f"empty{number}.png").touch()
    (pets / "cat" / "same.png").write_bytes((pets / "cat" / "0000.png").read_bytes())
    assert format_audit(run_audit(pets)).splitlines() == [
        "14 files, 9 images that can be read, 2 classes",
        "",
        "warning  empty file: 5",
        "  cat/empty0.png: the file has no bytes",
        "  cat/empty1.png: the file has no bytes",
        "  cat/empty2.png: the file has no bytes",
        "  … and 2 more",
        "",
        "note     duplicate: 1",
        "  cat/0000.png, cat/same.png: the same picture",
    ]


def test_the_json_has_everything_that_was_found(pets: Path) -> None:
    (pets / "cat" / "größe.png").touch()
    answer = json.loads(run_audit(pets).as_json())
    assert (answer["n_files"], answer["classes"]) == (9, {"cat": 4, "dog": 4})
    assert answer["findings"] == [
        {"kind": "empty_file", "severity": "warning", "paths": ["cat/größe.png"], "detail": "the file has no bytes"}
    ]


def test_nothing_of_the_data_set_is_changed(pets: Path) -> None:
    (pets / "cat" / "empty.png").touch()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in pets.rglob("*") if path.is_file()}
    for folder in (pets, pets / "cat", pets / "dog"):
        folder.chmod(0o555)
    try:
        run_audit(pets)
    finally:
        for folder in (pets, pets / "cat", pets / "dog"):
            folder.chmod(0o755)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in pets.rglob("*") if path.is_file()} == before


def test_five_thousand_files_take_little_memory_each(pets: Path) -> None:
    run_audit(pets)  # imports and Pillow's plug-ins
    content = [path.read_bytes() for path in sorted(pets.rglob("*.png"))]
    for number in range(5000):
        (pets / "cat" / f"copy{number:05}.png").write_bytes(content[number % 4])
    tracemalloc.start()
    audit = run_audit(pets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(one.kind, len(one.paths)) for one in audit.findings][1:] == [("duplicate", 1251)] * 4
    assert peak / 5000 < 6000 * max(1, (os.cpu_count() or 1) / 8)  # bytes


def test_the_only_file_of_its_format_among_many_is_noted(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    write_images(root, "cat", 60)
    write_images(root, "dog", 60, first=60)
    assert findings(root) == []
    Image.new("RGB", (30, 20), "red").save(root / "dog" / "imageNotFound.gif")
    assert findings(root) == [("note", "stray_format", ("dog/imageNotFound.gif",))]
