"""Files to pixels, through `app.image` alone: what is trained on is what will be served.

Files that do not decode are skipped and reported, never guessed at.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.errors import ConvServeError
from app.image import Pixels, decode, fit
from app.spec import InputSpec
from training.errors import InputError
from training.folder import LabelledFile


@dataclass(frozen=True)
class Skipped:
    """A file that is not in the data set, and why."""

    path: Path
    reason: str


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


@dataclass(frozen=True)
class _Decoded:
    file: LabelledFile
    sha256: str
    pixels: Pixels


def decode_files(files: Sequence[LabelledFile], labels: Sequence[str], spec: InputSpec) -> Samples:
    """Decodes and fits every file, on all cores.

    Raises: InputError when none of them decodes.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(partial(_decode_file, spec=spec), files))
    decoded = [result for result in results if isinstance(result, _Decoded)]
    skipped = tuple(result for result in results if isinstance(result, Skipped))
    if not decoded:
        raise InputError(f"none of the {len(files)} files is an image that can be read: {_first_reason(skipped)}")
    index = {label: number for number, label in enumerate(labels)}
    return Samples(
        pixels=np.stack([one.pixels for one in decoded]),
        classes=np.array([index[one.file.label] for one in decoded], dtype=np.int64),
        paths=tuple(one.file.path for one in decoded),
        digest=digest_of((one.file.label, one.sha256) for one in decoded),
        skipped=skipped,
    )


def digest_of(pairs: Iterable[tuple[str, str]]) -> str:
    """The sha256 of a data set, from its (label, sha256 of file) pairs in any order."""
    lines = (f"{sha256} {label}\n" for label, sha256 in sorted(pairs))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _decode_file(file: LabelledFile, spec: InputSpec) -> _Decoded | Skipped:
    try:
        encoded = file.path.read_bytes()
        return _Decoded(file, hashlib.sha256(encoded).hexdigest(), fit(decode(encoded, spec), spec))
    except ConvServeError as error:
        return Skipped(file.path, str(error))
    except OSError as error:
        return Skipped(file.path, f"cannot be read: {error.strerror}")


def _first_reason(skipped: Sequence[Skipped]) -> str:
    return f"{skipped[0].path.name}: {skipped[0].reason}" if skipped else "there are no files"
