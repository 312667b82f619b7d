"""Files to pixels, through `app.image` alone: what is trained on is what will be served.

    files ──read_files──▶ a Reading of each image ──stack──▶ Samples

Each file is read and decoded once, for the audit too. Files that do not decode are skipped and reported, never guessed at.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import ConvServeError
from app.image import Pixels, decode, fit, sniff
from app.spec import InputSpec
from training.duplicates import Fingerprint, fingerprint
from training.errors import InputError
from training.folder import LabelledFile

WHOLE = InputSpec(height=4096, width=4096, channels=3)  # so large that no JPEG is reduced while it is decoded
EMPTY = "the file has no bytes"
_MOVING = {"GIF": b"", "TIFF": b"", "AVIF": b"", "PNG": b"acTL", "WEBP": b"ANIM"}  # what is in files of several frames


class Skipped(NamedTuple):
    """A file that is not in the data set, and why."""

    file: LabelledFile
    reason: str

    def __str__(self) -> str:
        return f"{self.file.path.name}: {self.reason}"


@dataclass(frozen=True)
class Samples:
    """Decoded images: uint8 `(n, height, width, channels)`, with class indices int64 `(n,)` and the files they came from."""

    pixels: Pixels
    classes: NDArray[np.int64]
    paths: tuple[Path, ...]
    digest: str  # sha256 over the sorted (label, sha256 of file) pairs
    skipped: tuple[Skipped, ...]
    sizes: tuple[tuple[int, int], ...] = ()  # width, height of each as decoded

    def __len__(self) -> int:
        return len(self.paths)


class Reading(NamedTuple):
    """What one image file is."""

    file: LabelledFile
    sha256: str  # of the file
    fingerprint: Fingerprint
    pixels: Pixels | None  # fitted; None where none were asked for
    form: str  # as `app.image.sniff` calls it
    size: tuple[int, int]  # width, height: as decoded, which may be reduced
    n_frames: int


def read_files(files: Sequence[LabelledFile], spec: InputSpec | None) -> tuple[list[Reading], tuple[Skipped, ...]]:
    """Reads, decodes and fits every file, on all cores; without a `spec` decodes it in full and keeps no pixels."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = list(pool.map(partial(_read_file, spec=spec), files))
    return [one for one in read if isinstance(one, Reading)], tuple(one for one in read if isinstance(one, Skipped))


def stack(images: Sequence[Reading], labels: Sequence[str], skipped: tuple[Skipped, ...] = ()) -> Samples:
    """The images with their pixels in one array. Raises: InputError when there are none."""
    if not images:
        first = skipped[0] if skipped else "there are none"
        raise InputError(f"none of the {len(skipped)} files is an image that can be read: {first}")
    index = {label: number for number, label in enumerate(labels)}
    return Samples(
        pixels=np.stack([one.pixels for one in images if one.pixels is not None]),
        classes=np.array([index[one.file.label] for one in images], dtype=np.int64),
        paths=tuple(one.file.path for one in images),
        digest=digest_of((one.file.label, one.sha256) for one in images),
        skipped=skipped,
        sizes=tuple(one.size for one in images),
    )


def decode_files(files: Sequence[LabelledFile], labels: Sequence[str], spec: InputSpec) -> Samples:
    """The images among the files. Raises: InputError when there are none."""
    images, skipped = read_files(files, spec)
    return stack(images, labels, skipped)


def digest_of(pairs: Iterable[tuple[str, str]]) -> str:
    """The sha256 of a data set, from its (label, sha256 of file) pairs in any order."""
    lines = (f"{sha256} {label}\n" for label, sha256 in sorted(pairs))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_file(file: LabelledFile, spec: InputSpec | None) -> Reading | Skipped:
    encoded = b""
    try:
        encoded = file.path.read_bytes()
        image = decode(encoded, spec or WHOLE)
    except ConvServeError as error:
        return Skipped(file, str(error) if encoded else EMPTY)
    except (OSError, ValueError) as error:  # ValueError: a manifest's path has a NUL
        return Skipped(file, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    pixels = fit(image, spec) if spec else None
    seen = fingerprint(image, None if pixels is None else pixels.tobytes())
    form, sha256 = sniff(encoded), hashlib.sha256(encoded).hexdigest()
    return Reading(file, sha256, seen, pixels, form, image.size, _count_frames(encoded, form))


def _count_frames(encoded: bytes, form: str) -> int:
    if form not in _MOVING or _MOVING[form] not in encoded:
        return 1
    try:
        with Image.open(io.BytesIO(encoded), formats=(form,)) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # Pillow's readers raise almost anything; the first frame was decoded
        return 1
