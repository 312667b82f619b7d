"""Finding the same picture twice, and drawing parts that never part it."""

import io
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from training.duplicates import (
    MIN_CORRELATION,
    SIDE,
    Fingerprint,
    draw_groups,
    find_copies,
    find_lookalikes,
    fingerprint,
    join_groups,
)
from training.errors import InputError


def picture(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Soft random colours: unlike any other seed's."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, format: str, **options: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, format, **options)
    return Image.open(io.BytesIO(data.getvalue())).convert("RGB")


def test_a_copy_in_another_lossless_format_is_the_same_picture() -> None:
    image = picture(1)
    prints = [fingerprint(one) for one in (image, picture(2), saved(image, "PNG"), saved(image, "BMP"), saved(image, "TIFF"))]
    assert find_copies(prints).tolist() == [0, 1, 0, 0, 0]


def test_equal_bytes_in_another_shape_are_another_picture() -> None:
    assert find_copies([fingerprint(Image.new("RGB", size)) for size in ((8, 4), (4, 8), (8, 4))]).tolist() == [0, 1, 0]


@pytest.mark.parametrize("quality", [30, 75])
@pytest.mark.parametrize("size", [(160, 120), (80, 60), (224, 224)])
def test_a_picture_compressed_again_or_resized_is_a_lookalike_but_no_copy(quality: int, size: tuple[int, int]) -> None:
    prints = [fingerprint(one) for one in (picture(1), saved(picture(1).resize(size), "JPEG", quality=quality), picture(2))]
    assert find_lookalikes(prints).tolist() == [0, 0, 2]
    assert find_copies(prints).tolist() == [0, 1, 2]


def test_a_picture_turned_grey_is_a_lookalike() -> None:
    prints = [fingerprint(one) for one in (picture(1), picture(1).convert("L").convert("RGB"))]
    assert find_lookalikes(prints).tolist() == [0, 0]


def test_plain_surfaces_are_not_taken_for_one_another() -> None:
    noise = np.random.default_rng(0).integers(0, 3, (3, 64, 64, 3), dtype=np.uint8)
    prints = [fingerprint(Image.fromarray(one + np.uint8(100))) for one in noise]
    assert find_lookalikes(prints).tolist() == [0, 1, 2]


def test_strokes_that_differ_by_a_pixel_are_not_taken_for_one_another() -> None:
    strokes = []
    for shift in range(6):
        pixels = np.zeros((28, 28), np.uint8)
        pixels[4:24, 10 + shift : 13 + shift] = 255
        strokes.append(fingerprint(Image.fromarray(pixels)))
    assert find_lookalikes(strokes).tolist() == list(range(6))


def test_lookalikes_found_by_projection_are_those_of_every_pair_compared() -> None:
    random = np.random.default_rng(0)
    base = random.integers(0, 256, (300, SIDE * SIDE))
    noise = random.normal(0, random.uniform(0, 15, (4, 300, 1)), (4, 300, SIDE * SIDE))
    thumbnails = np.clip(base + noise, 0, 255).astype(np.uint8).reshape(-1, SIDE * SIDE)
    prints = [Fingerprint(bytes([index // 256, index % 256]), one.tobytes()) for index, one in enumerate(thumbnails)]
    alike = np.corrcoef(thumbnails.astype(np.float64)) >= 0.998
    expected = np.arange(len(prints))
    join_groups(expected, *np.nonzero(alike))
    assert 300 < len(np.unique(expected)) < 1100  # there is something to find, and to leave
    assert find_lookalikes(prints).tolist() == expected.tolist()


def test_a_chain_of_lookalikes_is_one_group_named_after_its_first_member() -> None:
    groups = np.arange(6)
    join_groups(groups, np.array([5, 4, 1]), np.array([4, 3, 2]))
    assert groups.tolist() == [0, 1, 1, 3, 3, 3]


def test_ten_thousand_thumbnails_with_a_thousand_alike_take_seconds() -> None:
    random = np.random.default_rng(0)
    thumbnails = random.integers(0, 256, (10_000, SIDE * SIDE), dtype=np.uint8)
    thumbnails[:1000] = thumbnails[0] ^ random.integers(0, 4, (1000, SIDE * SIDE), dtype=np.uint8)
    prints = [Fingerprint(index.to_bytes(4), one.tobytes()) for index, one in enumerate(thumbnails)]
    start = time.perf_counter()
    groups = find_lookalikes(prints)
    assert time.perf_counter() - start < 15
    assert (groups[:1000] == 0).all()
    assert groups[1000:].tolist() == list(range(1000, 10_000))


def test_a_group_is_never_parted_and_every_class_gives_its_share() -> None:
    random = np.random.default_rng(0)
    labels = random.choice(["ant", "bee", "wasp"], 3000, p=[0.6, 0.3, 0.1]).tolist()
    groups = [(label, int(number)) for label, number in zip(labels, random.integers(0, 300, 3000), strict=True)]
    drawn = draw_groups(labels, groups, 0.1, seed=3)
    sides = {(group, bool(side)) for group, side in zip(groups, drawn, strict=True)}
    assert len(sides) == len(set(groups))
    counts, taken = Counter(labels), Counter(label for label, side in zip(labels, drawn, strict=True) if side)
    assert all(abs(taken[label] / counts[label] - 0.1) < 0.02 for label in counts)


def test_the_same_seed_draws_the_same_images_and_another_seed_others() -> None:
    labels, groups = ["a", "b"] * 100, list(range(200))
    first, same, other = (draw_groups(labels, groups, 0.2, seed=seed).tolist() for seed in (1, 1, 2))
    assert first == same != other
    assert sum(first) == 40


def test_of_large_groups_the_smallest_is_drawn() -> None:
    drawn = draw_groups(["a"] * 100, [0] * 40 + [1] * 40 + [2] * 20, 0.1, seed=0)
    assert drawn.nonzero()[0].tolist() == list(range(80, 100))


def test_a_picture_with_two_labels_stays_on_one_side() -> None:
    labels, groups = ["a"] * 10 + ["b"] * 10, [*range(10), 0, *range(11, 20)]
    for seed in range(20):
        drawn = draw_groups(labels, groups, 0.3, seed=seed)
        assert drawn[0] == drawn[10]
        assert drawn[:10].sum() in (3, 4)  # 4: b drew it when a had its share
        assert drawn[10:].sum() == 3


def test_a_class_of_one_group_cannot_be_divided() -> None:
    with pytest.raises(InputError, match=r"class 'b' cannot be divided: all its images are alike or of one group"):
        draw_groups(["a", "a", "a", "b", "b", "b"], [0, 1, 2, 3, 3, 3], 0.1, seed=0)


def test_lookalikes_are_those_of_comparing_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.duplicates.BLOCK", 3)
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 120)
    left, top = np.ones((2, SIDE, SIDE))
    left[:, SIDE // 2 :], top[SIDE // 2 :] = -1, -1
    pixels = np.array([128 + 60 * (np.cos(angle) * left + np.sin(angle) * top) for angle in angles]).astype(np.uint8)
    groups = np.arange(len(pixels))
    pairs = np.argwhere(np.corrcoef(pixels.reshape(len(pixels), -1)) >= MIN_CORRELATION)
    join_groups(groups, *pairs.T)
    assert 5 < len(set(groups.tolist())) < 60
    prints = [Fingerprint(bytes([number]), one.tobytes()) for number, one in enumerate(pixels)]
    assert find_lookalikes(prints).tolist() == groups.tolist()
