import hashlib
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.app.test_playground import CHROMIUM, needs_chromium
from tests.images import encode
from tests.training.test_main import refusal
from training.__main__ import main
from training.data_set import read_data_set
from training.labelling import SMALL

LABEL = 'a "b", <c>'


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Eight images as a service keeps them: six unsure, the first the surest, and two that were kept as of their class."""
    random = np.random.default_rng(0)
    for number in range(8):
        data = encode(random.integers(0, 256, (9, 9, 3), np.uint8), "PNG")
        folder = tmp_path / ("unsure" if number < 6 else LABEL)
        folder.mkdir(exist_ok=True)
        digest = hashlib.sha256(data).hexdigest()[:32]
        (folder / f"{LABEL}_{0.9 - number / 100:.3f}_{digest}.png").write_bytes(data)
    return tmp_path


def test_the_page_shows_the_least_sure_first_and_escapes_what_it_shows(
    samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", str(samples)]) == 0
    assert "8 of 8 images" in capsys.readouterr().out
    page = (samples / "labelling.html").read_text(encoding="utf-8")
    shares = [f"{83 + number}.0%" for number in range(8)]
    assert sorted(shares, key=page.index) == shares
    assert "<c>" not in page
    assert page.count("data:image/png;base64,") == 8


def test_a_file_that_is_no_image_and_a_folder_that_is_not_there_are_named(
    samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (samples / "unsure" / "notes.txt").write_text("no image")
    assert "notes.txt cannot be shown" in refusal(capsys, "label", samples)
    assert "cannot be read" in refusal(capsys, "label", samples / "gone")
    assert not (samples / "labelling.html").exists()


@needs_chromium
def test_labels_given_on_the_page_become_a_manifest_that_training_reads(samples: Path) -> None:
    assert main(["label", str(samples)]) == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((samples / "labelling.html").as_uri())
        fields = page.get_by_label("label")
        assert [fields.nth(number).input_value() for number in (0, 1, 2)] == [LABEL, LABEL, ""]
        for number, label in enumerate([LABEL, "new", "new", "new", " "], start=2):
            fields.nth(number).fill(label)
        with page.expect_download() as download:
            page.get_by_role("button").click()
        download.value.save_as(samples / "labels.csv")
        expect(page.get_by_text("6 images have a label")).to_be_visible()
        browser.close()
    data = read_data_set(samples / "labels.csv", SMALL, seed=0)
    assert data.labels == (LABEL, "new")
    assert sum(len(part) for part in (data.train, data.validation, data.test or ())) == 6
