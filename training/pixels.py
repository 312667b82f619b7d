"""Files to pixels, through `app.image` alone: what is trained on is what will be served.

    files ──read_files──▶ a Reading of each ──stack──▶ Samples

Each file is read and decoded once; what the audit wants to know of it is in its reading. Files that do not decode are
skipped and reported, never guessed at.
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
MAX_ASPECT = 10  # of a picture that is not extreme
EMPTY = "the file has no bytes"
_MOVING = {"GIF": b"", "TIFF": b"", "AVIF": b"", "PNG": b"acTL", "WEBP": b"ANIM"}  # what is in files of several frames


@dataclass(frozen=True)
class Skipped:
    """A file that is not in the data set, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}"


@dataclass(frozen=True)
class Samples:
    """Decoded images: uint8 `(n, height, width, channels)`, with class indices int64 `(n,)` and the files they came from."""

    pixels: Pixels
    classes: NDArray[np.int64]
    paths: tuple[Path, ...]
    digest: str  # sha256 over the sorted (label, sha256 of file) pairs
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return len(self.paths)


class Reading(NamedTuple):
    """What one file is: an image with a fingerprint, or something else with the reason why it cannot be used."""

    file: LabelledFile
    reason: str = ""
    sha256: str = ""  # of the file, which is empty where there is none
    fingerprint: Fingerprint | None = None
    pixels: Pixels | None = None  # fitted; None where none were asked for
    form: str = ""  # as `app.image.sniff` calls it
    size: tuple[int, int] = (0, 0)  # width, height
    n_frames: int = 1


def read_files(files: Sequence[LabelledFile], spec: InputSpec | None) -> list[Reading]:
    """Reads, decodes and fits every file, on all cores; without a `spec` decodes it in full and keeps no pixels."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(partial(_read_file, spec=spec), files))


def stack(readings: Sequence[Reading], labels: Sequence[str]) -> Samples:
    """The images among the readings.

    Raises: InputError when there are none.
    """
    images = [one for one in readings if one.pixels is not None]
    skipped = tuple(Skipped(one.file.path, one.reason) for one in readings if one.pixels is None)
    if not images:
        first = skipped[0] if skipped else "there are none"
        raise InputError(f"none of the {len(readings)} files is an image that can be read: {first}")
    index = {label: number for number, label in enumerate(labels)}
    return Samples(
        pixels=np.stack([one.pixels for one in images if one.pixels is not None]),
        classes=np.array([index[one.file.label] for one in images], dtype=np.int64),
        paths=tuple(one.file.path for one in images),
        digest=digest_of((one.file.label, one.sha256) for one in images),
        skipped=skipped,
    )


def prints_of(readings: Iterable[Reading]) -> list[Fingerprint]:
    """The fingerprints of the images among the readings."""
    return [one.fingerprint for one in readings if one.fingerprint]


def decode_files(files: Sequence[LabelledFile], labels: Sequence[str], spec: InputSpec) -> Samples:
    """The images among the files.

    Raises: InputError when there are none.
    """
    return stack(read_files(files, spec), labels)


def digest_of(pairs: Iterable[tuple[str, str]]) -> str:
    """The sha256 of a data set, from its (label, sha256 of file) pairs in any order."""
    lines = (f"{sha256} {label}\n" for label, sha256 in sorted(pairs))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_file(file: LabelledFile, spec: InputSpec | None) -> Reading:
    try:
        encoded = file.path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a manifest's path has a NUL
        return Reading(file, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    sha256 = hashlib.sha256(encoded).hexdigest()
    try:
        image = decode(encoded, spec or WHOLE)
    except ConvServeError as error:
        return Reading(file, str(error) if encoded else EMPTY, sha256)
    pixels = fit(image, spec) if spec else None
    form, size = sniff(encoded), image.size
    if max(size) > MAX_ASPECT * min(size):  # worth telling: by the header, since decoding may have reduced it
        with Image.open(io.BytesIO(encoded), formats=(form,)) as header:
            size = header.size
    seen = fingerprint(image, None if pixels is None else pixels.tobytes())
    return Reading(file, "", sha256, seen, pixels, form, size, _count_frames(encoded, form))


def _count_frames(encoded: bytes, form: str) -> int:
    if form not in _MOVING or _MOVING[form] not in encoded:
        return 1
    try:
        with Image.open(io.BytesIO(encoded), formats=(form,)) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # Pillow's readers raise almost anything; the first frame was decoded
        return 1
