"""Where labelled files come from, and which part of the work each is for: a folder, a .zip of one, or a CSV manifest.

    DATA ──open_source──▶ folder or manifest ──list_source──▶ labelled files ──divide──▶ all in parts ──expand_videos──▶ images

A manifest has the columns path and label, and if wanted split (train, val, test) and group (never parted); a split that was
drawn once can be written as one. What cannot be used raises InputError. Nothing of the user's is changed.
"""

import csv
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from app.errors import ConvServeError
from app.image import decode
from app.spec import InputSpec
from training.duplicates import SIDE, Fingerprint, Groups, draw_groups, find_lookalikes, fingerprint, join_groups
from training.errors import InputError, refusing
from training.folder import (
    PART_FOLDERS,
    TEST_SHARE,
    VALIDATION_SHARE,
    Files,
    Folder,
    LabelledFile,
    Part,
    check_labels,
    list_folder,
)
from training.pixels import Skipped
from training.videos import is_video, sample_video

MAX_UNPACKED_BYTES = 50 * 2**30
MAX_MEMBERS = 2_000_000
COLUMNS = ("path", "label", "split", "group")
COARSE = InputSpec(height=32, width=32, channels=1)  # what pictures are compared at: JPEGs are reduced while decoded


@contextmanager
def open_data(path: Path, *, seed: int, split: Path | None = None) -> Iterator[tuple[Folder, tuple[Skipped, ...]]]:
    """The files of `path` in their parts, videos as frames, and the videos that cannot be read; `split` is written if given."""
    with open_source(path) as (source, frames):
        listing = list_source(source)
        labels = check_labels(path, listing)
        listing = divide(listing, seed=seed)
        if split and source != path:
            raise InputError(f"the files of {path} are gone after the work: unpack it to write {split}")
        if split:
            write_manifest(split, listing)
        listing, skipped = expand_videos(listing, frames)
        yield Folder(path, labels, *(tuple(one for one in listing if one.part == part) for part in get_args(Part))), skipped


@contextmanager
def open_part(path: Path, part: Part | Literal["all"], *, seed: int) -> Iterator[tuple[Files, tuple[Skipped, ...]]]:
    """The files of one part, or of all, as `open_data` parts them."""
    with open_source(path) as (source, frames):
        listing = list_source(source)
        if part != "all" and all(one.part != part for one in listing):
            listing = divide(listing, seed=seed)
        listing = tuple(one for one in listing if part in ("all", one.part))
        if not listing:
            raise InputError(f"{path} has no {part} images: expected class folders with images, or take another --split")
        yield expand_videos(listing, frames)


@contextmanager
def open_source(path: Path) -> Iterator[tuple[Path, Path]]:
    """The folder or manifest that `path` is or, if a .zip, holds, and a folder for frames; temporary ones are removed."""
    with tempfile.TemporaryDirectory(prefix="convserve-") as temporary:
        is_zip = path.suffix.lower() == ".zip" and not path.is_dir()
        yield _unpack(path, Path(temporary, "zip", path.stem)) if is_zip else path, Path(temporary, "frames")


def list_source(path: Path) -> Files:
    """The labelled files of a folder or of a manifest."""
    if path.is_file() and path.suffix.lower() == ".csv":
        return _read_manifest(path)
    listing = list_folder(path)
    if not listing:
        raise InputError(f"{path} has no class folders with images: expected {path.name}/<label>/<image>")
    return listing


def write_manifest(path: Path, listing: Files) -> None:
    """Writes a listing as a manifest, with paths relative to it."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for one in listing:
                writer.writerow((os.path.relpath(one.path, path.parent), one.label, one.part or "", one.group))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def divide(listing: Files, *, seed: int) -> Files:
    """Gives every file that has none a part, drawn class by class, with lookalikes and named groups on one side."""
    parts = [one.part for one in listing]
    if "validation" not in parts:
        groups, labels = _group(listing), np.array([one.label for one in listing])
        shares: dict[Part, float] = {} if any(parts) else {"test": TEST_SHARE}
        for part, share in (shares | {"validation": VALIDATION_SHARE}).items():
            pool = np.flatnonzero([given in (None, "train") for given in parts])
            for index in pool[draw_groups(labels[pool].tolist(), groups[pool].tolist(), share, seed + (part == "validation"))]:
                parts[index] = part
    return tuple(replace(one, part=part or "train") for one, part in zip(listing, parts, strict=True))


def expand_videos(listing: Files, folder: Path) -> tuple[Files, tuple[Skipped, ...]]:
    """Puts frames, written into `folder`, in the place of each video; the video is their group."""
    expanded: list[LabelledFile] = []
    skipped: list[Skipped] = []
    for number, one in enumerate(listing):
        try:
            frames = sample_video(one.path, folder / f"{number}-{one.path.name}") if is_video(one.path) else ()
        except InputError as error:
            skipped.append(Skipped(one.path, str(error)))
        else:
            group = one.group or str(one.path)
            expanded += [replace(one, path=frame, group=group) for frame in frames] or [one]
    return tuple(expanded), tuple(skipped)


def _unpack(path: Path, root: Path) -> Path:
    """Unpacks a .zip into `root`; returns the folder of the classes or parts, which most archives wrap in another."""
    max_bytes = min(MAX_UNPACKED_BYTES, shutil.disk_usage(tempfile.gettempdir()).free)
    with refusing(f"{path} cannot be unpacked"), zipfile.ZipFile(path) as archive:
        sizes = [member.file_size for member in archive.infolist()]
        if len(sizes) > MAX_MEMBERS or sum(sizes) > max_bytes:
            found = f"{len(sizes):,} members of {sum(sizes) / 1e6:,.0f} MB"
            raise InputError(f"{found} are more than {MAX_MEMBERS:,} of {max_bytes / 1e6:,.0f} MB: give a folder")
        archive.extractall(root)  # never writes outside of it, nor more of a member than its stated size
    inner = [child for child in root.iterdir() if child.is_dir() and not child.name.startswith((".", "__MACOSX"))]
    while len(inner) == 1 and inner[0].name not in PART_FOLDERS and any(map(Path.is_dir, inner[0].iterdir())):
        root, inner = inner[0], list(inner[0].iterdir())
    return root


def _read_manifest(path: Path) -> Files:
    try:
        header, _, body = path.read_text("utf-8-sig").partition("\n")
        delimiter = ";" if header.count(";") > header.count(",") else ","  # as spreadsheets write where the comma is decimal
        columns = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
        rows = list(csv.DictReader(io.StringIO(body), columns, restval="", delimiter=delimiter))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: save it as CSV UTF-8") from error
    except (OSError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not {"path", "label"}.issubset(columns):
        raise InputError(f"{path} has no columns path and label: its first line must be path,label")
    listing: list[LabelledFile] = []
    for line, row in enumerate(rows, start=2):
        name, label, split, group = (row.get(column, "").strip() for column in COLUMNS)
        if not name or not label:
            raise InputError(f"{path}, line {line}: a file needs both a path and a label")
        if split and split.lower() not in PART_FOLDERS:
            raise InputError(f"{path}, line {line}: split is {split!r}, expected train, val or test")
        listing.append(LabelledFile(path.parent / name, label, PART_FOLDERS.get(split.lower()), group))
    if not listing:
        raise InputError(f"{path} lists no files")
    if len({one.part is None for one in listing}) > 1:
        raise InputError(f"{path} has a split for some files and none for others: fill the column, or leave all of it empty")
    return tuple(listing)


def _group(listing: Files) -> Groups:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        groups = find_lookalikes(list(pool.map(_fingerprint_file, listing)))
    first: dict[str, int] = {}
    named = [(index, first.setdefault(one.group, index)) for index, one in enumerate(listing) if one.group]
    join_groups(groups, *np.array(named, dtype=np.int64).reshape(-1, 2).T)
    return groups


def _fingerprint_file(file: LabelledFile) -> Fingerprint:
    try:
        return fingerprint(decode(file.path.read_bytes(), COARSE))
    except (ConvServeError, OSError):  # no picture is like nothing else
        return Fingerprint(os.fsencode(file.path), bytes(SIDE * SIDE))
