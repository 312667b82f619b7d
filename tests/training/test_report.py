import io
import math
import re
from base64 import b64decode
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.spec import Golden, ModelSpec
from tests.models import colour_spec
from training.errors import InputError
from training.evaluate import Measured
from training.figures import expected_calibration_error, score
from training.pixels import Samples
from training.report import TEMPLATE, render, thumbnail, write_report
from training.run_report import Epoch, RunReport

LABELS = ("<script>alert(1)</script>", 'é "猫" & co', "عربي", "plain")
TEMPERATURE = 1.6
MAX_PAGE_BYTES = 1_500_000
HISTORY = (Epoch(1, 2.1, 1.9, 0.5, 1e-3), Epoch(2, 1.1, 0.8, 0.75, 2e-3), Epoch(3, 0.9, 0.7, 0.73, 1e-4))


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def spec_of(labels: tuple[str, ...] = LABELS, **changes: object) -> ModelSpec:
    golden = Golden(image="", probabilities=(0.5,) * len(labels), tolerance=0.01)
    return colour_spec(**{"labels": labels, "temperature": TEMPERATURE, "goldens": (golden,), **changes})


def measured(data: str, n: int, labels: tuple[str, ...] = LABELS, *, side: int = 8, seed: int = 0) -> Measured:
    """Noise images; the model is mostly right, and sometimes very sure of the wrong class."""
    random, n_classes = np.random.default_rng(seed), len(labels)
    truth = random.integers(n_classes, size=n)
    logits = random.normal(size=(n, n_classes))
    logits[np.arange(n), truth] += random.normal(4, 2, size=n)
    logits[::20, 1] += 20
    samples = Samples(
        pixels=random.integers(256, size=(n, side, side, 3), dtype=np.uint8),
        classes=truth.astype(np.int64),
        paths=tuple(Path("/home/somebody/photos/test/<i>") / f"{data}-{number}.png".replace("/", "-") for number in range(n)),
        digest="0" * 64,
        skipped=(),
    )
    return Measured(spec_of(labels), "a" * 64, data, samples, softmax(logits / TEMPERATURE).astype(np.float32))


STRANGE = np.linspace(0.2, 0.7, 1234)
REPORT = RunReport(
    parts=(measured("set/validation", 200, seed=1), replace(measured("set/test", 300, seed=2), strange={"<noise>": STRANGE})),
    history=HISTORY,
    audit={("note", "<duplicates>"): ("<img src=x>", "b", "c")},
    verdict=(("<int8>", "0.91"), ("speed", "× 2")),
)
MANY = tuple(f"<{number}> {'long ' * 20}" for number in range(600))


class Page(HTMLParser):
    """A page, read strictly: every element that begins must end."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}  # by caption, rows of cells
        self.text = ""
        self._place: list[list[str]] = []
        self._caption = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self._place, self._caption = [], ""
        elif tag == "tr":
            self._place.append([])
        elif tag in ("td", "th"):
            self._place[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._place[1:]

    def handle_data(self, data: str) -> None:
        self.text += data
        if "caption" in self.open:
            self._caption += data
        elif self.open and self.open[-1] in ("td", "th"):  # what is inside of <small> is a note
            self._place[-1][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


@pytest.fixture(scope="module")
def source() -> str:
    return render(REPORT)


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_every_element_ends_and_every_reference_has_its_target(page: Page) -> None:
    assert page.open == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    targets = [reference[1:] for reference in page.attributes("href")]
    targets += [name for names in page.attributes("aria-labelledby") for name in names.split()]
    assert len(targets) > 15
    assert set(targets) <= set(ids)


def test_the_page_loads_nothing_and_runs_nothing(source: str, page: Page) -> None:
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    assert all(reference.startswith("#") for reference in page.attributes("href"))
    assert all(reference.startswith("data:image/") for reference in page.attributes("src"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not re.search(r"https?:|url\(|@import", source)
    assert "default-src 'none'" in source


@pytest.mark.parametrize("n_classes", [4, 40])
def test_labels_paths_findings_and_variants_never_become_markup(n_classes: int) -> None:
    labels = LABELS + tuple(f"<i>{number}" for number in range(n_classes - len(LABELS)))
    part = replace(measured("<b>set", 300, labels), strange={"<noise>": STRANGE})
    source = render(replace(REPORT, parts=(part,)))
    page = Page(source)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "i", "int8", "duplicates", "noise"})
    assert escape(LABELS[0]) in source
    for text in (*labels, "<b>set", "<duplicates>", "<img src=x>", "<int8>", "test/<i>/"):
        assert text in page.text


def test_the_figures_shown_are_those_computed(page: Page) -> None:
    for part, row in zip(REPORT.parts, page.tables["All figures"], strict=True):
        scores = score(part.probabilities, part.samples.classes)
        accepted = part.probabilities.max(axis=1) >= 0.6
        wrong = part.probabilities.argmax(axis=1) != part.samples.classes
        low, high = scores.interval
        figures = [f"{scores.macro_f1:.4f}", f"{scores.log_loss:.4f}", f"{scores.ece:.4f}"]
        shares = [f"{accepted.mean():.2%}", f"{wrong[accepted].mean():.2%}"]
        assert row == [part.data, str(scores.n), f"{scores.accuracy:.2%}", f"{low:.2%} – {high:.2%}", *figures, *shares]


def test_the_confusion_matrix_and_the_classes_are_those_of_test(page: Page) -> None:
    scores = REPORT.parts[-1].scores
    [grid] = [rows for caption, rows in page.tables.items() if caption.startswith("Images of each label")]
    assert [[0 if cell == "·" else int(cell) for cell in row[1:]] for row in grid] == [list(row) for row in scores.confusion]
    rows = page.tables["4 of 4 classes, worst first"]
    assert [row[0] for row in rows] == [LABELS[number] for number in np.argsort([one.f1 for one in scores.classes])]
    assert [float(row[4]) for row in rows] == sorted(round(one.f1, 4) for one in scores.classes)


def test_the_calibration_error_is_shown_before_and_after(page: Page) -> None:
    part = REPORT.parts[-1]
    before = expected_calibration_error(part.uncalibrated.probabilities, part.samples.classes)
    assert f"ECE {before:.4f} before, {part.scores.ece:.4f} after" in page.text
    assert "the temperature 1.600" in page.text


def test_how_well_images_of_other_things_are_told_apart_is_shown(page: Page) -> None:
    [one] = REPORT.parts[-1].strangers
    assert one.accepted == pytest.approx(np.mean(STRANGE >= 0.6))
    assert page.tables["Images of other things"] == [["<noise>", "1234", f"{one.auroc:.4f}", f"{one.accepted:.4f}"]]


def test_the_findings_of_the_audit_are_counted_with_examples(page: Page) -> None:
    assert page.tables["Findings"] == [["note", "<duplicates>", "3", "<img src=x>\nb\nc"]]


def test_the_weights_that_were_kept_are_marked_by_the_rule_of_the_training_loop(page: Page) -> None:
    assert "kept: epoch 2" in page.text


def test_a_doubtful_label_is_shown_once_and_of_any_part(page: Page) -> None:
    doubtful, mistakes = page.text.split("Labels that look wrong")[1].split("Worst mistakes")
    shown = re.findall(r"set-(?:test|validation)-\d+\.png", doubtful)
    others = re.findall(r"set-(?:test|validation)-\d+\.png", mistakes)
    assert {name.split("-")[1] for name in shown} == {"test", "validation"}
    assert others
    assert set(shown).isdisjoint(others)


def test_a_page_that_is_passed_on_does_not_tell_where_the_images_lie(source: str) -> None:
    assert "somebody" not in source


def test_what_was_not_done_is_said() -> None:
    part = replace(REPORT.parts[0], spec=spec_of(accept=None, temperature=1.0))
    text = Page(render(RunReport([part]))).text
    for sentence in ("not trained here", "not audited", "No smaller variant", "Accept threshold: none"):
        assert sentence in text


def test_a_model_without_mistakes_has_a_page() -> None:
    part = measured("set/validation", 40)
    sure = np.eye(len(LABELS), dtype=np.float32)[part.samples.classes]
    text = Page(render(replace(REPORT, parts=[replace(part, probabilities=sure)]))).text
    assert text.count("There are none.") == 2


@pytest.mark.parametrize("history", [HISTORY[:1], (Epoch(1, math.nan, math.inf, 0.0, 0.0), *HISTORY[1:]), HISTORY * 500])
def test_curves_of_any_length_and_of_losses_that_are_no_numbers_are_drawn(history: tuple[Epoch, ...]) -> None:
    page = Page(render(replace(REPORT, history=history)))
    points = " ".join(page.attributes("points"))
    assert points
    assert not re.search("nan|inf", points)


def test_the_largest_page_stays_small(tmp_path: Path) -> None:
    report = replace(
        REPORT,
        parts=[measured("v", 1200, MANY, side=160), measured("t", 1200, MANY, side=160, seed=3)],
        history=[replace(HISTORY[0], number=number) for number in range(1, 3000)],
        audit={("note", f"finding {number}"): ["x" * 200] * 5000 for number in range(12)},
    )
    out = write_report(report, tmp_path / "m.onnx")
    assert 150_000 < out.stat().st_size <= MAX_PAGE_BYTES
    page = Page(out.read_text(encoding="utf-8"))
    assert len(page.attributes("src")) == 48
    assert max(len(rows) for rows in page.tables.values()) == len(page.tables["100 of 600 classes, worst first"]) == 100
    assert len(page.tables["The commonest confusions"]) == 30


def test_a_thumbnail_is_lossless_where_it_can_be_and_small_in_any_case() -> None:
    random = np.random.default_rng(0)
    digit = random.integers(256, size=(28, 28, 1), dtype=np.uint8)
    decoded = Image.open(io.BytesIO(b64decode(thumbnail(digit).removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(decoded), digit[:, :, 0])
    noise = thumbnail(random.integers(256, size=(224, 300, 3), dtype=np.uint8))
    assert len(noise) <= 8 * 1024 + len("data:image/jpeg;base64,")


def test_the_page_replaces_the_old_one_in_one_step_or_leaves_it(tmp_path: Path) -> None:
    out = write_report(REPORT, tmp_path / "digits-1.2.onnx")
    assert out == tmp_path / "digits-1.2.html"
    old = tmp_path / "old"
    old.hardlink_to(out)
    write_report(replace(REPORT, audit=None), tmp_path / "digits-1.2.onnx")
    before = out.read_bytes()
    assert old.read_bytes() != before  # not written into
    with pytest.raises(IndexError):
        write_report(replace(REPORT, parts=()), tmp_path / "digits-1.2.onnx")
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {out.name, "old"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.html").mkdir()
    with pytest.raises(InputError, match=r"m\.html"):
        write_report(REPORT, tmp_path / "m.onnx")


def test_file_names_need_not_be_utf8(tmp_path: Path) -> None:
    part = measured("set/validation", 40)
    samples = replace(part.samples, paths=tuple(Path(f"caf\udce9-{number}.png") for number in range(40)))
    out = write_report(replace(REPORT, parts=[replace(part, samples=samples)]), tmp_path / "m.onnx")
    assert "caf?-" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(scheme: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", TEMPLATE.read_text(encoding="utf-8"), re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): ([^;]+);", block)) for block in blocks)
    assert dark.keys() == light.keys()
    colours = light if scheme == "light" else dark
    rgb = {name: to_rgb(value) for name, value in colours.items()}
    for text in ("ink", "muted", "a", "b"):
        assert min(contrast(rgb[text], rgb[ground]) for ground in ("paper", "raised")) >= 4.5
    for tint, strongest in (("a-rgb", 0.28), ("b-rgb", 0.48)):  # the cells of the confusion matrix
        assert contrast(rgb["ink"], rgb[tint] * strongest + rgb["raised"] * (1 - strongest)) >= 4.5


def to_rgb(colour: str) -> NDArray[np.float64]:
    values = re.findall(r"[0-9a-f]{2}", colour) if colour.startswith("#") else colour.split()
    return np.array([int(value, 16 if colour.startswith("#") else 10) for value in values], np.float64)


def contrast(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Source: WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(rgb: NDArray[np.float64]) -> float:
        share = rgb / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_temperature_is_undone_exactly() -> None:
    logits = np.random.default_rng(0).normal(scale=6, size=(50, 7))
    for temperature in (0.3, 1.0, 2.5):
        served = softmax(logits / temperature).astype(np.float32)
        part = replace(REPORT.parts[0], spec=spec_of(temperature=temperature), probabilities=served)
        np.testing.assert_allclose(part.uncalibrated.probabilities, softmax(logits), atol=1e-6)


def test_the_bins_hold_every_image_and_add_up_to_the_calibration_error() -> None:
    part = REPORT.parts[0]
    gap = sum(abs(n * confidence - n_right) for confidence, n_right, n in part.bins)
    assert sum(n for _, _, n in part.bins) == part.scores.n
    assert sum(n_right for _, n_right, _ in part.bins) == part.scores.n_correct
    assert gap / part.scores.n == pytest.approx(part.scores.ece)


def test_risk_is_counted_from_the_surest_answer() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], np.float32)
    samples = replace(REPORT.parts[0].samples, classes=np.array([1, 0, 1, 0]))
    assert replace(REPORT.parts[0], probabilities=probabilities, samples=samples).risk.tolist() == pytest.approx(
        [0, 0, 1 / 3, 1 / 2]
    )
