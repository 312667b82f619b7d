"""Images that are kept for labelling: which, where and how many; and no request ever waits for it or fails by it."""

import re
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.samples import BLOCK_BYTES, NAME
from tests.images import encode, fine_jpeg
from tests.models import COLOUR_INPUT, png
from tests.service import ServiceProcess, run_app, serve
from training.data_set import read_data_set

SURE = png((255, 0, 0))
UNSURE = png((90, 80, 70))  # the colour model accepts from 0.6 on
OFTEN: dict[str, Any] = {"sample_per_minute": 1e6, "threads": 1, "drain_seconds": 0}


def post(process: ServiceProcess, *images: bytes) -> None:
    """Sends the images one after the other; all are answered."""
    with process.client() as client:
        for image in images:
            assert client.post("/predict", content=image).status_code == 200
            time.sleep(0.002)


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_only_what_the_model_is_not_sure_of_is_kept_as_it_was_sent_for_its_owner_alone(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "samples"
    photo = fine_jpeg(np.full((16, 16, 3), (70, 90, 80), np.uint8))
    with serve(model=colours, sample_dir=folder, **OFTEN) as process:
        post(process, SURE, UNSURE, photo, UNSURE)
        process.wait_for_metric("convserve_samples_total", 2, outcome="stored")
        process.wait_for_metric("convserve_samples_total", 1, outcome="known")
    files = kept(folder)
    assert [path.suffix for path in files] == [".jpeg", ".png"]
    assert [path.read_bytes() for path in files] == [photo, UNSURE]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "unsure")} == {0o700}
    assert {path.parent.name for path in files} == {"unsure"}
    named = [NAME.fullmatch(path.name) for path in files]
    assert [(one["label"], 0.3 < float(one["probability"]) < 0.6) for one in named if one] == [("green", True), ("red", True)]


@pytest.mark.parametrize("which", [{"sample_share": 1}, {"sample_below": 1}])
def test_a_share_of_the_sure_ones_or_those_below_a_bound_go_to_the_folder_of_their_class(
    colours: Path, tmp_path: Path, which: dict[str, Any]
) -> None:
    with serve(model=colours, sample_dir=tmp_path, **which, **OFTEN) as process:
        post(process, SURE, png((0, 0, 250)))
        process.wait_for_metric("convserve_samples_total", 2, outcome="stored")
    assert [path.parent.name for path in kept(tmp_path)] == ["blue", "red"]


def test_what_a_person_has_moved_is_known_also_by_the_next_process(colours: Path, tmp_path: Path) -> None:
    for outcome in ("stored", "known"):
        with serve(model=colours, sample_dir=tmp_path, **OFTEN) as process:
            post(process, UNSURE)
            process.wait_for_metric("convserve_samples_total", 1, outcome=outcome)
        for path in kept(tmp_path):
            (tmp_path / "brown").mkdir(exist_ok=True)
            path.rename(tmp_path / "brown" / path.name)


def test_rate_and_size_are_bounded(colours: Path, tmp_path: Path) -> None:
    with serve(model=colours, sample_dir=tmp_path / "slow", sample_per_minute=1, threads=1) as process:
        post(process, UNSURE, png((80, 90, 70)))
        process.wait_for_metric("convserve_samples_total", 1, outcome="stored")
        process.wait_for_metric("convserve_samples_total", 1, outcome="rate")
    with serve(model=colours, sample_dir=tmp_path / "small", sample_max_bytes=BLOCK_BYTES, **OFTEN) as process:
        post(process, UNSURE, png((80, 90, 70)))
        process.wait_for_metric("convserve_samples_total", 1, outcome="stored")
        process.wait_for_metric("convserve_samples_total", 1, outcome="full")
    assert len(kept(tmp_path)) == 2


def test_a_folder_that_takes_nothing_fails_no_request_and_is_complained_of_once(colours: Path, tmp_path: Path) -> None:
    (tmp_path / "unsure").touch()  # a file in the folder's place, as an error that root meets too
    with serve(model=colours, sample_dir=tmp_path, **OFTEN) as process:
        post(process, UNSURE, png((80, 90, 70)))
        process.wait_for_metric("convserve_samples_total", 2, outcome="failed")
        process.wait_for_text(re.compile("images cannot be kept"))
        assert sum("images cannot be kept" in line for line in process.lines) == 1


def test_a_folder_that_cannot_be_made_stops_the_start_in_one_sentence(colours: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run_app(model=colours, sample_dir=tmp_path / "file" / "samples", port=0)
    assert ended.returncode == 1
    assert ended.stderr.startswith("convserve: CONVSERVE_SAMPLE_DIR=")
    assert len(ended.stderr.splitlines()) == 1


def test_what_was_kept_and_labelled_can_be_trained_on(colours: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [encode(random.integers(60, 90, (8, 8, 3), dtype=np.uint8), "PNG") for _ in range(12)]
    with serve(model=colours, sample_dir=tmp_path, **OFTEN) as process:
        post(process, *images)
        process.wait_for_metric("convserve_samples_total", len(images), outcome="stored")
    for number, path in enumerate(kept(tmp_path)):
        label = tmp_path / ("cat", "dog")[number % 2]
        label.mkdir(exist_ok=True)
        path.rename(label / path.name)
    (tmp_path / "unsure").rmdir()
    data = read_data_set(tmp_path, COLOUR_INPUT, seed=0)
    assert data.labels == ("cat", "dog")
    assert sum(len(part) for part in (data.train, data.validation, data.test or ())) == len(images)
