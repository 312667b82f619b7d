"""The answer cache: the same bytes get the same answer without being run again, within its bounds, and off by default."""

from pathlib import Path

import numpy as np
import pytest

from app.cache import ENTRY_BYTES, AnswerCache
from app.metrics import Metrics
from tests.models import png
from tests.service import serve

ROW = np.arange(10, dtype=np.float32)
ENTRY = ROW.nbytes + ENTRY_BYTES


def lookups(metrics: Metrics, result: str) -> float:
    return metrics.registry.get_sample_value("convserve_cache_lookups_total", {"result": result}) or 0


def kept(cache: AnswerCache, images: list[bytes]) -> list[bool]:
    return [cache.find(image)[1] is not None for image in images]


def test_what_was_kept_is_found_by_its_content() -> None:
    metrics = Metrics()
    cache = AnswerCache(10 * ENTRY, metrics)
    key, row = cache.find(b"one")
    assert row is None
    batch = np.stack([ROW, ROW])
    cache.keep(key, batch[0])
    batch[:] = 0  # the batch is somebody else's
    found = cache.find(bytes(bytearray(b"one")))[1]
    assert found is not None
    assert found.tolist() == ROW.tolist()
    assert (lookups(metrics, "hit"), lookups(metrics, "miss")) == (1, 1)


def test_pixels_never_answer_for_an_encoded_image_of_the_same_bytes() -> None:
    cache = AnswerCache(10 * ENTRY, Metrics())
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    cache.keep(cache.find(pixels)[0], ROW)
    assert cache.find(pixels.copy())[1] is not None
    assert cache.find(pixels.tobytes())[1] is None


def test_the_one_not_asked_for_longest_goes_first_and_the_bytes_stay_in_bounds() -> None:
    metrics = Metrics()
    cache = AnswerCache(3 * ENTRY + 1, metrics)
    images = [b"one", b"two", b"three"]
    for image in images:
        cache.keep(cache.find(image)[0], ROW)
    cache.find(b"one")
    for _ in range(2):  # twice the same counts once
        cache.keep(cache.find(b"four")[0], ROW)
    assert metrics.registry.get_sample_value("convserve_cache_bytes") == 3 * ENTRY
    assert kept(cache, [*images, b"four"]) == [True, False, True, True]


def test_an_entry_larger_than_the_cache_is_not_kept() -> None:
    cache = AnswerCache(ENTRY - 1, Metrics())
    cache.keep(cache.find(b"one")[0], ROW)
    assert kept(cache, [b"one"]) == [False]


@pytest.mark.parametrize(("cache_bytes", "runs"), [(2**20, 3), (0, 6)])
def test_a_service_runs_an_image_once_if_it_is_told_to_remember(colours: Path, cache_bytes: int, runs: int) -> None:
    red, green, text = png((255, 0, 0)), png((0, 255, 0)), b"text"
    with serve(model=colours, threads=1, cache_bytes=cache_bytes) as process, process.client() as client:
        before = process.metric("convserve_images_total", outcome="classified")
        first = client.post("/predict", content=red).json()
        again = client.post("/predict?top_k=1", content=red).json()
        assert again["predictions"] == first["predictions"][:1]
        batch = client.post("/predict/batch", files=[("files", ("x", data)) for data in (green, text, red, png((0, 0, 255)))])
        labels = [one.get("predictions", [{"label": None}])[0]["label"] for one in batch.json()["results"]]
        assert labels == ["green", None, "red", "blue"]
        client.post("/predict", content=green)
        assert process.metric("convserve_images_total", outcome="classified") == before + runs
        assert process.metric("convserve_cache_lookups_total", result="hit") == (3 if cache_bytes else 0)
        assert process.metric("convserve_predictions_total", label="green") == 2
