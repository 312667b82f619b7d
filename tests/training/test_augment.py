from dataclasses import replace

import pytest
import torch

from training.augment import Augmentation, Mixing
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


def test_a_shift_alone_moves_whole_pixels_and_keeps_the_image_sharp() -> None:
    changed = Augmentation(shift=0.1, outside="reflection")(IMAGES, seeded())
    # Every tone of the middle is one of the image.
    for one, before in zip(changed[..., 4:-4, 4:-4], IMAGES, strict=True):
        assert (one.reshape(-1, 1) - before.reshape(1, -1)).abs().min(dim=1).values.max() < 1e-4
    assert (changed - IMAGES).abs().mean() > 0.1


def test_erasing_puts_a_grey_square_of_its_share_into_every_image() -> None:
    changed = Augmentation(erase=0.5)(torch.zeros(200, 3, 28, 28), seeded())
    erased = changed == 0.5
    assert torch.equal(changed > 0.4, erased)
    sizes = erased[:, 0].sum(dim=(1, 2))
    assert sizes.min() >= 7 * 7 - 14
    assert sizes.max() == 14 * 14
    assert len(set(sizes.tolist())) > 10


def test_rand_augment_changes_images_and_keeps_their_range() -> None:
    torch.manual_seed(0)
    changed = Augmentation(rand_augment=2)(RED + 0.3, seeded())
    assert changed.shape == RED.shape
    assert 0 <= changed.min() < changed.max() <= 1


@pytest.mark.parametrize(("mixing", "keeps_tones"), [(Mixing(mixup_alpha=1.0), False), (Mixing(cutmix_alpha=1.0), True)])
def test_mixing_shares_the_labels_as_it_shares_the_pixels(mixing: Mixing, keeps_tones: bool) -> None:
    torch.manual_seed(2)
    classes = torch.arange(4)
    images = classes.float().view(4, 1, 1, 1).expand(4, 1, 40, 40) / 4  # each tone is a class
    mixed, targets = mixing(images, classes, 4)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    torch.testing.assert_close((targets * classes / 4).sum(dim=1), mixed.mean(dim=(1, 2, 3)), atol=1e-5, rtol=0)
    assert (targets.max(dim=1).values < 1).all()
    assert set(mixed.flatten().tolist()).issubset({0.0, 0.25, 0.5, 0.75}) is keeps_tones


def test_no_mixing_leaves_class_indices() -> None:
    images, classes = Mixing()(IMAGES, torch.arange(16), 16)
    assert images is IMAGES
    assert classes.dtype == torch.int64
