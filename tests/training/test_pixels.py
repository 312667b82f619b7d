import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.spec import InputSpec
from training.errors import InputError
from training.folder import LabelledFile
from training.pixels import decode_files, digest_of

SPEC = InputSpec(height=28, width=28, channels=1)


def test_pixels_are_those_of_the_files_in_order(digits: Path) -> None:
    paths = sorted(digits.glob("train/[37]/*.png"))
    samples = decode_files([LabelledFile(path, path.parent.name) for path in paths], ("3", "7"), SPEC)
    assert samples.pixels.shape == (16, 28, 28, 1)
    assert samples.classes.tolist() == [0] * 8 + [1] * 8
    for path, pixels in zip(paths, samples.pixels, strict=True):
        np.testing.assert_array_equal(pixels[..., 0], np.asarray(Image.open(path)))


def test_files_that_do_not_decode_are_skipped_and_named(digits: Path, tmp_path: Path) -> None:
    good, note, cut = tmp_path / "good.png", tmp_path / "note.txt", tmp_path / "cut.png"
    shutil.copy(next(digits.glob("train/0/*.png")), good)
    note.write_text("not an image")
    cut.write_bytes(good.read_bytes()[:100])
    samples = decode_files([LabelledFile(path, "0") for path in (cut, good, note, tmp_path / "gone")], ("0", "1"), SPEC)
    assert samples.paths == (good,)
    assert [one.file.path.name for one in samples.skipped] == ["cut.png", "note.txt", "gone"]
    assert "damaged or truncated" in samples.skipped[0].reason
    assert "not an image of a type taken here" in samples.skipped[1].reason


def test_no_readable_file_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("not an image")
    with pytest.raises(InputError, match=r"none of the 1 files is an image that can be read: note\.txt"):
        decode_files([LabelledFile(tmp_path / "note.txt", "0")], ("0", "1"), SPEC)


def test_the_digest_depends_on_labels_and_contents_and_not_on_order() -> None:
    pairs = [("cat", "aa"), ("dog", "bb")]
    assert digest_of(pairs) == digest_of(reversed(pairs))
    assert digest_of(pairs) != digest_of([("dog", "aa"), ("cat", "bb")])
