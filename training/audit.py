"""What is wrong with a data set, before a model learns it: `python -m training audit`, and the start of every training.

Reads only, changes nothing. Of an image 300 bytes are kept, with Python's own about 1 kB.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from PIL import Image

from training.duplicates import Groups, find_copies, find_lookalikes
from training.folder import MIN_PER_CLASS, LabelledFile
from training.pixels import EMPTY, Reading, Skipped, read_files
from training.sources import expand_videos, list_source, open_source

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
    "empty_file": ("warning", "{}"),
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

    def by_kind(self) -> dict[tuple[str, str], list[str]]:
        """What was found of each severity and kind, the worst first."""
        kinds = groupby(self.findings, key=lambda finding: finding.kind)
        return {(RULES[kind][0], kind.replace("_", " ")): list(map(_line, group)) for kind, group in kinds}

    def __str__(self) -> str:
        """All of it in one line."""
        counts = [f"{len(found):,} {kind} ({severity})" for (severity, kind), found in self.by_kind().items()]
        return f"audit: {', '.join(counts) or 'nothing found'}"


def run_audit(source: Path) -> Audit:
    """Looks at every file of a folder, .zip or manifest. Raises: InputError when there are no labelled files at all."""
    with open_source(source) as (root, frames):
        files, videos = expand_videos(list_source(root), frames)
        images, skipped = read_files(files, None)
        return audit_images(root, images, find_lookalikes([one.fingerprint for one in images]), (*videos, *skipped))


def audit_images(root: Path, images: Sequence[Reading], lookalikes: Groups, skipped: Sequence[Skipped]) -> Audit:
    """What is found in images, with their groups, and in files that are none; `root` is the folder or the manifest."""
    folder = root if root.is_dir() else root.parent
    read = [one.file for one in images]
    files = [*read, *(one.file for one in skipped)]
    findings = [
        *(_find("empty_file" if why == EMPTY else "unreadable", [file.path], why) for file, why in skipped),
        *(_find("hidden_file", [path]) for path in _list_hidden(root)),
        *(finding for one in images for finding in _look_at(one)),
        *_find_strays([one.path for one in files]),
        *_find_repeated(images, lookalikes),
        *_find_uneven(files, read),
    ]
    findings = [replace(one, paths=tuple(os.path.relpath(path, folder) for path in one.paths)) for one in findings]
    findings.sort(key=lambda finding: (list(RULES).index(finding.kind), finding.paths))
    return Audit(len(files), len(images), dict(sorted(Counter(one.label for one in read).items())), tuple(findings))


def format_audit(audit: Audit) -> str:
    """A paragraph for each kind of finding, with its number and first examples."""
    lines = [f"{audit.n_files:,} files, {audit.n_images:,} images that can be read, {len(audit.classes)} classes"]
    for (severity, kind), found in audit.by_kind().items():
        lines += ["", f"{severity:<7}  {kind}: {len(found):,}", "  " + _shown(found, "\n  ")]
    return "\n".join(lines if audit.findings else [*lines, "", "nothing found"])


def _line(finding: Finding) -> str:
    return f"{_shown(finding.paths, ', ')}{': ' if finding.paths else ''}{finding.detail}"


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


def _list_hidden(root: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(root):
        is_hidden = f"{os.sep}." in directory.removeprefix(str(root))
        yield from (Path(directory, name) for name in names if is_hidden or name.startswith("."))


def _look_at(image: Reading) -> Iterator[Finding]:
    paths, size = [image.file.path], image.size
    if Image.registered_extensions().get(paths[0].suffix.lower()) != image.form:
        yield _find("wrong_suffix", paths, image.form)
    if image.n_frames > 1:
        yield _find("many_frames", paths, image.n_frames)
    if min(size) < MIN_SIDE or max(size) > MAX_ASPECT * min(size):
        yield _find("extreme_size", paths, *size)


def _find_repeated(images: Sequence[Reading], lookalikes: Groups) -> Iterator[Finding]:
    for near, groups in (("", find_copies([one.fingerprint for one in images])), ("near_", lookalikes)):
        members: defaultdict[int, list[Reading]] = defaultdict(list)
        for image, group in zip(images, groups.tolist(), strict=True):
            members[group].append(image)
        for alike in (group for group in members.values() if len(group) > 1):
            files = [one.file for one in alike]
            is_new = not near or len({one.fingerprint.digest for one in alike}) > 1  # else found as copies
            if is_new and len({one.group or one.path for one in files}) > 1:  # else frames of a video, or said to be alike
                labels, parts = {one.label for one in files}, {str(one.part) for one in files}
                names: dict[str, set[str]] = {"two_labels": labels, "leak": parts, "duplicate": set()}
                for kind in [kind for kind in names if len(names[kind]) > 1] or ["duplicate"]:
                    yield _find(near + kind, [one.path for one in files], " and ".join(sorted(names[kind])))


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
