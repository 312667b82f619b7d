"""A data set's images in their parts, to train on or to measure on: each file is read once, audited, and divided if need be.

    DATA ──sources──▶ labelled files ──read_files──▶ readings ──find_lookalikes──▶ audit, parts ──▶ DataSet

Only what can be read is divided, and lookalikes are never parted. The same seed and input rule give the same parts.
"""

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from app.image import Pixels
from app.spec import InputSpec, ModelSpec
from training.audit import Audit, audit_images
from training.duplicates import find_lookalikes
from training.errors import InputError
from training.folder import Files, LabelledFile, Part, check_labels, walk
from training.pixels import Reading, Samples, Skipped, decode_files, read_files, stack
from training.sources import divide, expand_videos, list_source, open_source, write_manifest

MAX_OTHERS = 1000  # images of other things: so many tell how well they are told apart
GOLDEN_CLASSES = 3
MAX_GOLDEN_BYTES = 20_000

T = TypeVar("T")


@dataclass(frozen=True)
class DataSet:
    """The decoded images, by what they are for."""

    name: str
    labels: tuple[str, ...]
    train: Samples
    validation: Samples
    test: Samples | None
    audit: Audit
    goldens: list[bytes]  # encoded images of validation


def read_data_set(path: Path, spec: InputSpec, *, seed: int, split: Path | None = None) -> DataSet:
    """All images of a data set, to train on; `split` is written if given.

    Raises: InputError.
    """
    with open_source(path) as (source, frames):
        listing = list_source(source)
        labels = check_labels(path, listing)
        if split and source != path:
            raise InputError(f"the files of {path} are gone after the work: unpack it to write {split}")
        files, videos = expand_videos(listing, frames)
        images, broken = read_files(files, spec)
        skipped = (*videos, *broken)
        _check_images(path, labels, images, skipped)
        lookalikes = find_lookalikes([one.fingerprint for one in images])
        audit = audit_images(source, images, lookalikes, skipped)
        parts = divide(tuple(one.file for one in images), lookalikes, seed=seed)
        if split:
            write_manifest(split, _undo_frames(listing, images, parts))
        train, validation, test = (_take(images, parts, part) for part in ("train", "validation", "test"))
        samples = stack(validation, labels)
        goldens = choose_goldens(samples)
    name = path.resolve().name
    return DataSet(name, labels, stack(train, labels), samples, stack(test, labels) if test else None, audit, goldens)


def _check_images(path: Path, labels: Sequence[str], images: Sequence[Reading], skipped: tuple[Skipped, ...]) -> None:
    """Refuses what could be learned from if all of it could be read."""
    missing = sorted(set(labels) - {one.file.label for one in images if one.file.part in (None, "train")})
    if images and missing:
        reason = next((one for one in skipped if one.file.label == missing[0]), "")
        raise InputError(f"class {missing[0]!r} has no training image that can be read: {reason}")
    check_labels(path, tuple(one.file for one in images)) if images else stack(images, labels, skipped)


def _take(images: Sequence[Reading], parts: Sequence[Part], part: str) -> list[Reading]:
    return [one for one, drawn in zip(images, parts, strict=True) if drawn == part]


def _undo_frames(listing: Files, images: Sequence[Reading], parts: Sequence[Part]) -> Files:
    """The listing with the parts that were drawn, without what cannot be read."""
    drawn = {(one.file.group or str(one.file.path), one.file.part): part for one, part in zip(images, parts, strict=True)}
    keys = [(one.group or str(one.path), one.part) for one in listing]
    return tuple(replace(one, part=drawn[key]) for one, key in zip(listing, keys, strict=True) if key in drawn)


def read_samples(path: Path, part: Part | Literal["all"], spec: ModelSpec, *, limit: int | None = None) -> Samples:
    """The images of one part of a data set, as the model sees them; at most `limit`, drawn by the model's own seed.

    Raises: InputError, also when a class is none of the model's.
    """
    seed = spec.provenance.seed
    with open_source(path) as (source, frames):
        listing = list_source(source)
        given, has = tuple(one for one in listing if part in ("all", one.part)), {one.part for one in listing}
        if not given and has != {None} and (part != "validation" or "train" not in has):
            raise InputError(f"{path} has no {part} images: expected class folders with images, or take another --split")
        unknown = sorted({one.label for one in given or listing} - set(spec.labels))
        if unknown:
            raise InputError(f"{path} has classes that the model does not know: {', '.join(unknown)}")
        files, videos = expand_videos(given or listing, frames)
        images, skipped = read_files(_draw(files, limit if given else None, seed), spec.input)
    if not given:  # as training draws it
        parts = divide(tuple(one.file for one in images), find_lookalikes([one.fingerprint for one in images]), seed=seed)
        images = _draw(_take(images, parts, part), limit, seed)
    return stack(images, spec.labels, (*videos, *skipped))


def read_others(path: Path | None, spec: InputSpec) -> dict[str, Pixels]:
    """Images of other things by their name, from any folder, .zip or manifest; nothing where there is no path.

    Raises: InputError.
    """
    if path is None:
        return {}
    with open_source(path) as (source, frames):
        paths = sorted(walk(source)) if source.is_dir() else [one.path for one in list_source(source)]
        files, _ = expand_videos(tuple(LabelledFile(path, "") for path in paths), frames)
        if not files:
            raise InputError(f"{path} has no images to tell apart from those of DATA")
        return {path.name: decode_files(_draw(files, MAX_OTHERS, seed=0), ("",), spec).pixels}


def _draw(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    return [*items] if limit is None else [items[i] for i in np.random.default_rng(seed).permutation(len(items))[:limit]]


def choose_goldens(samples: Samples) -> list[bytes]:
    """The first images of the first, the middle and the last class, encoded."""
    present = np.unique(samples.classes)
    chosen = np.unique(present[np.linspace(0, len(present) - 1, GOLDEN_CLASSES).round().astype(np.int64)])
    first = [int(np.flatnonzero(samples.classes == number)[0]) for number in chosen]
    return [_encode(samples.paths[index], samples.pixels[index]) for index in first]


def _encode(path: Path, pixels: Pixels) -> bytes:
    """The file itself if it is small, else its fitted pixels as PNG, which `fit` takes as they are."""
    with suppress(OSError):  # it may be gone since
        if path.stat().st_size <= MAX_GOLDEN_BYTES:
            return path.read_bytes()
    encoded = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(encoded, "PNG", optimize=True)
    return encoded.getvalue()
