"""The same picture twice: found by its pixels, and kept on one side when a data set is divided.

    Image ──fingerprint──▶ sha256 of pixels, 16 × 16 thumbnail ──find_lookalikes──▶ group of each image ──draw_groups──▶ part

Copies have equal pixels, whatever file format holds them. Lookalikes are one picture scaled, compressed again or turned grey.
Cropped and mirrored pictures are not found.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.errors import InputError

Groups = NDArray[np.int64]  # (n,), equal numbers for the members of one group: the index of its first

SIDE = 16  # of the thumbnail, pixels
# Correlation of two thumbnails. JPEG of quality 30 and half the size leave at least 0.9989. No two of MNIST's 70,000 digits,
# all different, reach it (one pair has 0.9975); of CIFAR-10's 60,000 images 10 pairs do, all of them real.
MIN_CORRELATION = 0.998
MIN_CONTRAST = 4.0  # standard deviation in grey levels: plain surfaces are alike without being copies
BLOCK = 512  # rows compared at a time: 512 × 100,000 float32 are 200 MB, if all of them lie as near
# How far apart two lookalikes can lie, as vectors of length 1, and therefore along any one direction; and the rounding.
MAX_DISTANCE = (2 - 2 * MIN_CORRELATION) ** 0.5 + 1e-5


class Fingerprint(NamedTuple):
    digest: bytes  # sha256 of size and pixels
    thumbnail: bytes  # grey, SIDE × SIDE


def fingerprint(image: Image.Image, pixels: bytes | None = None) -> Fingerprint:
    """What `image` is known by: equal `pixels` (all of the image where there are none), and how it looks from afar."""
    content = pixels or f"{image.mode} {image.size}".encode() + image.tobytes()
    thumbnail = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)  # antialiased
    return Fingerprint(hashlib.sha256(content).digest(), thumbnail.tobytes())


def find_copies(prints: Sequence[Fingerprint]) -> Groups:
    """The group of each image, by equal pixels."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(one.digest, index) for index, one in enumerate(prints)], dtype=np.int64)


def find_lookalikes(prints: Sequence[Fingerprint]) -> Groups:
    """The group of each image, by equal or nearly equal pixels; what is like a member belongs to the group."""
    groups = find_copies(prints)
    images = np.unique(groups)
    vectors = np.frombuffer(b"".join(prints[index].thumbnail for index in images), np.uint8).reshape(-1, SIDE * SIDE)
    is_clear = vectors.std(axis=1) >= MIN_CONTRAST
    images, vectors = images[is_clear], vectors[is_clear].astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # In the order of the direction that tells most apart, only near neighbours need to be compared.
    places = vectors @ np.linalg.eigh(vectors.T @ vectors)[1][:, -2]
    order = np.argsort(places, kind="stable")
    images, vectors, places = images[order], vectors[order], places[order]
    for start in range(0, len(images), BLOCK):
        block = slice(start, start + BLOCK)
        end = np.searchsorted(places, places[block][-1] + MAX_DISTANCE, "right")
        one, other = np.nonzero(vectors[block] @ vectors[start:end].T >= MIN_CORRELATION)
        join_groups(groups, images[start + one], images[start + other])
    return groups


def join_groups(groups: Groups, one: NDArray[np.integer], other: NDArray[np.integer]) -> None:
    """Makes one group, in place, of those of the images `one[i]` and `other[i]`, for every i."""
    while (groups[one] != groups[other]).any():
        low, high = np.minimum(groups[one], groups[other]), np.maximum(groups[one], groups[other])
        np.minimum.at(groups, high, low)
        while (groups[groups] != groups).any():
            groups[:] = groups[groups]


def draw_groups(labels: Sequence[str], groups: Sequence[Hashable], share: float, seed: int) -> NDArray[np.bool_]:
    """Draws a share of each class, at least one image and never all, such that no group is parted; bool `(n,)`."""
    classes: defaultdict[str, Counter[Hashable]] = defaultdict(Counter)
    for label, group in zip(labels, groups, strict=True):
        classes[label][group] += 1
    drawn: set[Hashable] = set()
    for number, (_, sizes) in enumerate(sorted(classes.items())):
        room = max(1, round(share * sizes.total())) - sum(sizes[group] for group in drawn & sizes.keys())
        order = list(sizes)
        np.random.default_rng([seed, number]).shuffle(order)
        for group in order:
            if group not in drawn and sizes[group] <= room:
                drawn.add(group)
                room -= sizes[group]
        if drawn.isdisjoint(sizes):
            drawn.add(min(order, key=sizes.__getitem__))
    for label, sizes in classes.items():
        if drawn.issuperset(sizes):
            raise InputError(f"class {label!r} cannot be divided: all its images are alike or of one group")
    return np.array([group in drawn for group in groups], dtype=np.bool_)
