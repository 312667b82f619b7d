from dataclasses import replace

import pytest
import torch

from training.augment import Augmentation
from training.recipes import DIGITS

IMAGES = torch.rand(16, 1, 28, 28, generator=torch.Generator().manual_seed(1))
RED = torch.zeros(4, 3, 20, 30)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_augmentation_changes_nothing() -> None:
    torch.testing.assert_close(Augmentation()(IMAGES, seeded()), IMAGES, atol=1e-5, rtol=0)


def test_a_seed_draws_the_same_changes() -> None:
    once, again = DIGITS.augmentation(IMAGES, seeded(3)), DIGITS.augmentation(IMAGES, seeded(3))
    assert torch.equal(once, again)
    assert not torch.equal(once, DIGITS.augmentation(IMAGES, seeded(4)))


def test_images_keep_their_shape_and_range_whatever_their_form() -> None:
    for images in (IMAGES, RED):
        changed = DIGITS.augmentation(images, seeded())
        assert changed.shape == images.shape
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_every_image_is_changed_in_its_own_way() -> None:
    changed = DIGITS.augmentation(IMAGES[:1].repeat(4, 1, 1, 1), seeded())
    assert len({tuple(image.flatten().tolist()) for image in changed}) == 4


def test_a_shift_moves_by_no_more_than_its_share_of_the_side() -> None:
    dot = torch.zeros(64, 1, 41, 41)
    dot[:, :, 20, 20] = 1
    moved = Augmentation(shift=0.1)(dot, seeded())
    rows, columns = torch.nonzero(moved.sum(dim=(0, 1)), as_tuple=True)
    for places in (rows, columns):
        assert 15 <= places.min() < 18
        assert 23 < places.max() <= 25


@pytest.mark.parametrize("name", ["rotation_degrees", "scale", "shear", "shift", "elastic", "stroke", "gamma"])
def test_each_change_of_the_digits_recipe_has_an_effect(name: str) -> None:
    alone = replace(Augmentation(), **{name: getattr(DIGITS.augmentation, name)})
    assert (alone(IMAGES, seeded()) - IMAGES).abs().mean() > 0.005


def test_mirroring_turns_some_images_and_leaves_the_others() -> None:
    images = torch.rand(32, 3, 9, 8, generator=torch.Generator().manual_seed(1))
    changed = Augmentation(mirror=True)(images, torch.Generator().manual_seed(0))
    turned = [torch.allclose(one, other.flip(2), atol=1e-5) for one, other in zip(changed, images, strict=True)]
    kept = [torch.allclose(one, other, atol=1e-5) for one, other in zip(changed, images, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 8 <= sum(turned) <= 24
