"""Where labelled files come from, and which part of the work each is for: a folder, a .zip of one, or a CSV manifest.

    DATA ──open_source──▶ folder or manifest ──list_source──▶ labelled files ──expand_videos──▶ images ──divide──▶ all in parts

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
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.duplicates import Groups, draw_groups, join_groups
from training.errors import InputError, refusing
from training.files import write_whole
from training.folder import PART_FOLDERS, TEST_SHARE, VALIDATION_SHARE, Files, LabelledFile, Part, list_folder
from training.pixels import Skipped
from training.videos import is_video, sample_video

MAX_UNPACKED_BYTES = 50 * 2**30
MAX_MEMBERS = 2_000_000
COLUMNS = ("path", "label", "split", "group")


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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((os.path.relpath(one.path, path.parent), one.label, one.part or "", one.group) for one in listing)
    write_whole(path, text.getvalue().encode("utf-8", errors="surrogateescape"))


def divide(listing: Files, lookalikes: Groups, *, seed: int) -> list[Part]:
    """The part of every file: where it has none, drawn class by class, with lookalikes and named groups on one side."""
    parts = [one.part for one in listing]
    if "validation" not in parts:
        groups, labels = _join_named(listing, lookalikes), np.array([one.label for one in listing])
        shares: dict[Part, float] = {} if any(parts) else {"test": TEST_SHARE}
        for part, share in (shares | {"validation": VALIDATION_SHARE}).items():
            pool = np.flatnonzero([given in (None, "train") for given in parts])
            for index in pool[draw_groups(labels[pool].tolist(), groups[pool].tolist(), share, seed + (part == "validation"))]:
                parts[index] = part
    return [part or "train" for part in parts]


def _join_named(listing: Files, lookalikes: Groups) -> Groups:
    groups = lookalikes.copy()
    first: dict[str, int] = {}
    named = [(index, first.setdefault(one.group, index)) for index, one in enumerate(listing) if one.group]
    join_groups(groups, *np.array(named, dtype=np.int64).reshape(-1, 2).T)
    return groups


def expand_videos(listing: Files, folder: Path) -> tuple[Files, tuple[Skipped, ...]]:
    """Puts frames, written into `folder`, in the place of each video; the video is their group."""
    expanded: list[LabelledFile] = []
    skipped: list[Skipped] = []
    for number, one in enumerate(listing):
        try:
            frames = sample_video(one.path, folder / f"{number}-{one.path.name}") if is_video(one.path) else ()
        except InputError as error:
            skipped.append(Skipped(one, str(error)))
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
    with refusing(f"{path} cannot be read as CSV UTF-8"):
        header, _, body = path.read_text("utf-8-sig").partition("\n")
        delimiter = ";" if header.count(";") > header.count(",") else ","  # as spreadsheets write where the comma is decimal
        columns = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
        rows = list(csv.DictReader(io.StringIO(body), columns, restval="", delimiter=delimiter))
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
