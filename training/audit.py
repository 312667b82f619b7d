"""`python -m training audit`: what is wrong with a data set, before a model learns it. Reads only, changes nothing.

Every file is read once and decoded in full, on all cores. Of an image 300 bytes are kept, with Python's own about 1 kB.
"""

import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from PIL import Image

from app.errors import ConvServeError
from app.image import decode, sniff
from app.spec import InputSpec
from training.duplicates import Fingerprint, find_copies, find_lookalikes, fingerprint
from training.folder import MIN_PER_CLASS, LabelledFile
from training.sources import expand_videos, list_source, open_source

WHOLE = InputSpec(height=4096, width=4096, channels=3)  # so large that no JPEG is reduced while it is decoded
MIN_SIDE = 8  # pixels
MAX_ASPECT = 10
MAX_IMBALANCE = 10
MIN_AROUND_STRAY = 100  # files
MAX_EXAMPLES = 3  # of a kind, in the table

RULES = {  # error: figures would be wrong, or training refuses; warning: an image is left out or used in part
    "leak": ("error", "the same picture is in {}"),
    "one_class": ("error", "there is only {!r}: a classifier needs at least two classes"),
    "small_class": ("error", "class {!r} has {} of the {} images that it needs"),
    "two_labels": ("error", "the same picture is called {}"),
    "empty_file": ("warning", "the file has no bytes"),
    "extreme_size": ("warning", "{} × {} pixels"),
    "imbalance": ("warning", "class {!r} has {:,} images, class {!r} {:,}"),
    "many_frames": ("warning", "of {} frames only the first is used"),
    "near_leak": ("warning", "nearly the same picture is in {}"),
    "near_two_labels": ("warning", "nearly the same picture is called {}"),
    "unreadable": ("warning", "{}"),
    "duplicate": ("note", "the same picture"),
    "hidden_file": ("note", "hidden files are left out"),
    "near_duplicate": ("note", "nearly the same picture"),
    "stray_format": ("note", "the only {} among {:,} files: look whether it is a placeholder"),
    "wrong_suffix": ("note", "the content is {}"),
}


@dataclass(frozen=True)
class Finding:
    kind: str
    severity: str
    paths: tuple[str, ...]  # from the data set's folder
    detail: str


@dataclass(frozen=True)
class Audit:
    n_files: int
    n_images: int  # that can be read
    classes: dict[str, int]  # images of each that can be read, in all parts
    findings: tuple[Finding, ...]

    @property
    def is_clean(self) -> bool:
        return all(finding.severity == "note" for finding in self.findings)

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=2)


def run_audit(source: Path) -> Audit:
    """Looks at every file of a folder, .zip or manifest. Raises: InputError when there are no labelled files at all."""
    with open_source(source) as (root, frames):
        folder = root if root.is_dir() else root.parent
        listing, skipped = expand_videos(list_source(root), frames)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            looks = list(pool.map(_look_at, (one.path for one in listing)))
        hidden = [path for path in root.rglob("*") if "/." in f"/{path.relative_to(root).as_posix()}" and path.is_file()]
    images = [(one, seen) for one, (seen, _) in zip(listing, looks, strict=True) if seen]
    findings = [
        *(_find("unreadable", [video.path], video.reason) for video in skipped),
        *(_find("hidden_file", [path]) for path in hidden),
        *(finding for _, of_file in looks for finding in of_file),
        *_find_strays([one.path for one in listing]),
        *_find_repeated(images),
        *_find_uneven(listing, [one for one, _ in images]),
    ]
    findings = [replace(one, paths=tuple(os.path.relpath(path, folder) for path in one.paths)) for one in findings]
    findings.sort(key=lambda finding: (list(RULES).index(finding.kind), finding.paths))
    classes = dict(sorted(Counter(one.label for one, _ in images).items()))
    return Audit(len(listing) + len(skipped), len(images), classes, tuple(findings))


def format_audit(audit: Audit) -> str:
    """A paragraph for each kind of finding, with its number and first examples."""
    lines = [f"{audit.n_files:,} files, {audit.n_images:,} images that can be read, {len(audit.classes)} classes"]
    for kind, group in groupby(audit.findings, key=lambda finding: finding.kind):
        findings = [f"{_shown(one.paths, ', ')}{': ' if one.paths else ''}{one.detail}" for one in group]
        lines += ["", f"{RULES[kind][0]:<7}  {kind.replace('_', ' ')}: {len(findings):,}", "  " + _shown(findings, "\n  ")]
    return "\n".join(lines if audit.findings else [*lines, "", "nothing found"])


def _shown(names: Sequence[str], separator: str) -> str:
    more = [f"… and {len(names) - MAX_EXAMPLES:,} more"] if len(names) > MAX_EXAMPLES else []
    return separator.join([*names[:MAX_EXAMPLES], *more])


def _find(kind: str, paths: Iterable[Path] = (), *values: object) -> Finding:
    severity, sentence = RULES[kind]
    return Finding(kind, severity, tuple(map(str, paths)), sentence.format(*values))


def _find_strays(paths: Sequence[Path]) -> Iterator[Finding]:
    """Among many files, the one of a format of its own, such as a web site's picture that says "not found"."""
    formats = [Image.registered_extensions().get(path.suffix.lower(), path.suffix) for path in paths]
    counts = Counter(formats)
    for path, form in zip(paths, formats, strict=True):
        if counts[form] == 1 and len(paths) >= MIN_AROUND_STRAY:
            yield _find("stray_format", [path], form, len(paths))


def _look_at(path: Path) -> tuple[Fingerprint | None, list[Finding]]:
    try:
        encoded = path.read_bytes()
        image = decode(encoded, WHOLE)
    except OSError as error:
        return None, [_find("unreadable", [path], f"cannot be read: {error.strerror}")]
    except ConvServeError as error:
        return None, [_find("unreadable", [path], error) if encoded else _find("empty_file", [path])]
    findings = []
    if Image.registered_extensions().get(path.suffix.lower()) != sniff(encoded):
        findings.append(_find("wrong_suffix", [path], sniff(encoded)))
    if (n_frames := _count_frames(encoded)) > 1:
        findings.append(_find("many_frames", [path], n_frames))
    if min(image.size) < MIN_SIDE or max(image.size) > MAX_ASPECT * min(image.size):
        findings.append(_find("extreme_size", [path], *image.size))
    return fingerprint(image), findings


def _count_frames(encoded: bytes) -> int:
    try:
        with Image.open(io.BytesIO(encoded), formats=("GIF", "PNG", "WEBP", "TIFF", "AVIF")) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # another format, or Pillow's readers, which raise almost anything; the first frame was decoded
        return 1


def _find_repeated(images: Sequence[tuple[LabelledFile, Fingerprint]]) -> Iterator[Finding]:
    prints = [seen for _, seen in images]
    for near, groups in (("", find_copies(prints)), ("near_", find_lookalikes(prints))):
        members: defaultdict[int, list[tuple[LabelledFile, Fingerprint]]] = defaultdict(list)
        for image, group in zip(images, groups.tolist(), strict=True):
            members[group].append(image)
        for alike in members.values():
            is_new = not near or len({seen.digest for _, seen in alike}) > 1  # else found as copies
            if is_new and len({one.group or one.path for one, _ in alike}) > 1:  # else frames of a video, or said to be alike
                labels, parts = {one.label for one, _ in alike}, {str(one.part) for one, _ in alike}
                names: dict[str, set[str]] = {"two_labels": labels, "leak": parts, "duplicate": set()}
                for kind in [kind for kind in names if len(names[kind]) > 1] or ["duplicate"]:
                    yield _find(near + kind, [one.path for one, _ in alike], " and ".join(sorted(names[kind])))


def _find_uneven(listing: Sequence[LabelledFile], images: Sequence[LabelledFile]) -> Iterator[Finding]:
    """What is wrong with the classes, by their images to train on (or to draw all parts from)."""
    counts = Counter({one.label: 0 for one in listing})
    counts.update(one.label for one in images if one.part in (None, "train"))
    for label, count in counts.items():
        if count < MIN_PER_CLASS:
            yield _find("small_class", (), label, count, MIN_PER_CLASS)
    if len(counts) == 1:
        yield _find("one_class", (), *counts)
    ranking = counts.most_common()
    if ranking and ranking[0][1] > MAX_IMBALANCE * ranking[-1][1]:
        yield _find("imbalance", (), *ranking[0], *ranking[-1])
