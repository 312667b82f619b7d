"""Drift: what has changed is noticed, what has not raises no alarm, and nothing is said where there is nothing to say."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from app.drift import FALSE_ALARMS, MATERIAL_PSI, MIN_IMAGES, PERIOD_SECONDS, Drift, Window, compare, measure
from app.schemas import Health
from app.spec import FEATURES, Reference
from tests.images import encode
from tests.models import colour_spec, write_colour_model
from tests.service import ServiceProcess, serve

RANDOM = np.random.default_rng(0)
HISTOGRAMS = {name: {"edges": [0.5, 1.5], "counts": [100, 100, 0]} for name in FEATURES}
REFERENCE = Reference.model_validate({"data": "hand/validation", "histograms": HISTOGRAMS})


def draw_colours(n: int, darkness: float = 0) -> NDArray[np.uint8]:
    """Plain pictures of 8 × 8 pixels, each of one random colour, in half of them mostly red."""
    colours = RANDOM.integers(0, 200, (n, 1, 1, 3)) + np.where(RANDOM.random((n, 1, 1, 1)) < 0.5, [55, 0, 0], 0)
    return np.broadcast_to(colours * (1 - darkness), (n, 8, 8, 3)).astype(np.uint8)


def hist(values: NDArray[np.float64]) -> dict[str, list[float]]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 9)))
    return {"edges": edges.tolist(), "counts": np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1).tolist()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour model, with a reference of 1,000 such pictures."""
    pictures = draw_colours(1000)
    logits = np.exp(pictures[:, 0, 0] / 255.0 * 8)
    answers = (logits / logits.sum(axis=1, keepdims=True)).astype(np.float32)
    features = np.array([measure(*one, (8, 8)) for one in zip(pictures, answers, strict=True)])
    histograms = {name: hist(column) for name, column in zip(FEATURES, features.T, strict=True)}
    path = tmp_path_factory.mktemp("drift") / "colours.onnx"
    return write_colour_model(path, colour_spec(reference={"data": "colours/validation", "histograms": histograms}))


@pytest.fixture
def watched(model: Path) -> Iterator[ServiceProcess]:
    with serve(model=model, threads=1, drain_seconds=0) as process:
        yield process


def send(pictures: NDArray[np.uint8], *clients: httpx.Client) -> None:
    """Sends them by turns, slowly enough for each to be counted."""
    for picture in pictures:
        for client in clients:
            assert client.post("/predict", content=encode(picture, "PNG")).status_code == 200
        time.sleep(PERIOD_SECONDS)


def drift_of(client: httpx.Client) -> dict[str, Drift] | None:
    return Health.model_validate_json(client.get("/health").content, strict=True).drift


def drifted(drift: dict[str, Drift] | None) -> set[str]:
    assert drift is not None
    assert set(drift) == set(FEATURES)
    return {name for name, one in drift.items() if one.psi > one.limit}


def test_what_has_not_changed_raises_hardly_ever_an_alarm() -> None:
    shares = np.array([0.02, 0.08, 0.2, 0.3, 0.4])
    for n, m in ((100, 6000), (100, 100), (500, 2000), (2000, 6000)):
        draws = [compare(RANDOM.multinomial(n, shares), RANDOM.multinomial(m, shares)) for _ in range(2000)]
        assert sum(one.psi > one.limit for one in draws) <= 10 * 2000 * FALSE_ALARMS / len(FEATURES) + 1, (n, m)
        assert draws[0].images == n


def test_few_images_need_a_larger_change_and_many_not_a_smaller_one_than_matters() -> None:
    limits = [compare(np.full(10, n // 10), np.full(10, 10_000)).limit for n in (100, 200, 500, 10_000)]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] > 0.25
    assert limits[-1] == MATERIAL_PSI


def test_the_index_is_that_of_the_textbook_but_for_half_an_image() -> None:
    drift = compare(np.array([5000, 5000]), np.array([8000, 2000]))
    assert drift.psi == pytest.approx(-0.3 * np.log(0.5 / 0.8) + 0.3 * np.log(0.5 / 0.2), rel=1e-3)


def test_an_image_is_measured_as_the_network_sees_it() -> None:
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, 48:] = 200
    answer = np.array([0.12345, 0.87655], np.float32)
    assert measure(pixels, answer, (300, 200)) == (1, 0.877, 100, 100, 1.5, 60_000)
    assert measure(pixels, answer, None) == (1, 0.877, 100, 100)


def test_only_the_last_images_count() -> None:
    window = Window(REFERENCE, 200)
    zero, one = ((top_class, 1.0, 1.0, 1.0, 1.0, 1.0) for top_class in (0, 1))
    window.count([zero] * (MIN_IMAGES - 1))
    assert window.drift() == {}
    for features in (zero, *[one] * 200):
        window.count([features])
    drift = window.drift()
    assert set(drift) == set(FEATURES)
    assert drift["predicted_class"] == compare(np.array([0, 200, 0]), np.array([100, 100, 0]))


def test_pixels_that_came_as_such_have_no_size_to_compare() -> None:
    window = Window(REFERENCE, 400)
    window.count([(0, 1.0, 1.0, 1.0)] * MIN_IMAGES)
    assert set(window.drift()) == set(FEATURES) - {"aspect", "size"}


def test_images_that_follow_too_closely_are_not_counted() -> None:
    window = Window(REFERENCE, 400)
    pixels, answers = np.zeros((200, 1, 1, 1), np.uint8), np.eye(1, 3, dtype=np.float32).repeat(200, axis=0)
    for _ in range(2):
        window.observe(pixels, answers, [(1, 1)] * 200)
    assert window.drift()["size"].images == 200


def test_a_service_notices_what_has_changed_and_only_that(watched: ServiceProcess) -> None:
    with watched.client() as client:
        send(draw_colours(250), client)
        assert drifted(drift_of(client)) == set()
        send(draw_colours(150, darkness=0.7), client)
        drift = drift_of(client)
    assert drifted(drift) == {"brightness", "contrast", "top_probability"}
    assert drift is not None
    assert watched.metric("convserve_drift_psi", feature="brightness") == pytest.approx(drift["brightness"].psi)
    assert watched.metric("convserve_drift_limit", feature="brightness") == pytest.approx(drift["brightness"].limit)


def test_each_of_several_workers_speaks_of_its_share_of_the_images(model: Path) -> None:
    with serve(model=model, workers=2, threads=2, drain_seconds=0) as process, process.client() as one, process.client() as two:
        send(draw_colours(150, darkness=0.7), one, two)
        drifts = [drift_of(client) for client in (one, two)]
        assert all(drift is not None and drift["brightness"].images < 160 for drift in drifts)
        psi, limit = (process.metric(f"convserve_drift_{name}", feature="brightness") for name in ("psi", "limit"))
        assert {(psi, limit)} <= {(drift["brightness"].psi, drift["brightness"].limit) for drift in drifts if drift}


def test_there_is_no_drift_without_a_reference_or_a_window(client: httpx.Client, model: Path) -> None:
    assert drift_of(client) is None
    assert "convserve_drift_psi{" not in client.get("/metrics").text
    with serve(model=model, drift_window=0) as process, process.client() as other:
        assert drift_of(other) is None


def test_the_model_card_has_no_use_for_the_reference(watched: ServiceProcess) -> None:
    with watched.client() as client:
        assert "reference" not in client.get("/model").json()
