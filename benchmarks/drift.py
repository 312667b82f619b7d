"""After how many requests drift is noticed, and how often an alarm is false.

    python -m benchmarks.drift --mnist FOLDER --photos FOLDER --cifar FOLDER --imagenet FOLDER

Digits: clean traffic is MNIST's test images, the reference that of the bundled file. Photographs: ImageNet's, with one of a
class: both the reference and clean traffic are drawn from all of them. Each run draws images with replacement and asks the
service's own window every `STEP` images. Prints the tables of docs/drift.md.
"""

import argparse
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from app.classifier import Classifier
from app.drift import Window, measure
from app.image import decode, fit
from app.settings import Settings
from app.spec import Reference
from benchmarks.imagenet import read_photographs
from benchmarks.machine import processor
from training.pixels import Samples
from training.reference import describe

MODELS = Path(__file__).parent.parent / "models"
STEP = 20  # images between looks
MAX_IMAGES = 6000  # of a run
RUNS = 100
CLEAN_RUNS, CLEAN_IMAGES = 200, 20_000
POOL = 1500  # different images of a kind
REFERENCE = 1000  # photographs
SIZE = Settings.model_fields["drift_window"].default
RANDOM = np.random.default_rng(0)

Features = list[tuple[float, ...]]


def main() -> None:
    """Measures both models and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("mnist", "photos", "cifar", "imagenet"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    print(f"{processor()}; window {SIZE}, {RUNS} runs each, seed 0\n")
    print_digits(options)
    print_photographs(options)


def print_digits(options: argparse.Namespace) -> None:
    """The model of digits."""
    classifier = Classifier.load(MODELS / "digits.onnx", device="cpu")
    assert classifier.spec.reference is not None
    files = sorted((options.mnist / "test").glob("*/*"))
    clean = features_of(classifier, [path.read_bytes() for path in files])
    ones = [one for one, path in zip(clean, files, strict=True) if path.parent.name == "1"]
    some = [files[i].read_bytes() for i in RANDOM.permutation(len(files))[:POOL]]
    photos, cifar = (features_of(classifier, draw(folder)) for folder in (options.photos, options.cifar))
    kinds = {
        "photographs (ants and bees)": mixed(clean, photos, 1),
        "CIFAR-10": mixed(clean, cifar, 1),
        "10 % CIFAR-10": mixed(clean, cifar, 0.1),
        "2 % CIFAR-10": mixed(clean, cifar, 0.02),
        "half as bright": mixed(clean, features_of(classifier, [darken(data, 0.5) for data in some]), 1),
        "80 % as bright": mixed(clean, features_of(classifier, [darken(data, 0.8) for data in some]), 1),
        "every third is a 1 (instead of every ninth)": mixed(clean, ones, 0.25),
        "every fifth is a 1": mixed(clean, ones, 0.1),
    }
    print_table("digits", classifier.spec.reference, lambda n: pick(clean, n), kinds)


def print_photographs(options: argparse.Namespace) -> None:
    """The model of photographs."""
    classifier = Classifier.load(MODELS / "imagenet.onnx", device="cpu", threads=2)
    _, _, rest = read_photographs(options.imagenet)
    probabilities = np.concatenate([classifier(pixels[None]) for pixels in rest.pixels])
    drawn = RANDOM.integers(len(rest), size=REFERENCE)
    sizes, paths = (tuple(column[i] for i in drawn) for column in (rest.sizes, rest.paths))
    seen = Samples(rest.pixels[drawn], rest.classes[drawn], paths, "", (), sizes)
    reference = describe("photographs", seen, probabilities[drawn])
    photographs = [path.read_bytes() for path in rest.paths]
    clean = features_of(classifier, photographs)
    dogs = [one for one in clean if 151 <= one[0] <= 268]
    kinds = {
        "ants and bees": mixed(clean, features_of(classifier, draw(options.photos)), 1),
        "CIFAR-10": mixed(clean, features_of(classifier, draw(options.cifar, 300)), 1),
        "MNIST": mixed(clean, features_of(classifier, draw(options.mnist / "test", 300)), 1),
        "half as bright": mixed(clean, features_of(classifier, [darken(data, 0.5) for data in photographs]), 1),
        "nothing but dogs": mixed(clean, dogs, 1),
    }
    print_table("imagenet", reference, lambda n: pick(clean, n), kinds)


def draw(folder: Path, n: int = POOL) -> list[bytes]:
    """Some of the images in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [files[i].read_bytes() for i in RANDOM.permutation(len(files))[:n]]


def darken(data: bytes, brightness: float) -> bytes:
    """The image with every level multiplied."""
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).point(lambda level: level * brightness).save(file, "PNG")
    return file.getvalue()


def features_of(classifier: Classifier, images: Sequence[bytes]) -> Features:
    """What a service would measure of them."""
    spec, found = classifier.spec.input, []
    for data in images:
        image = decode(data, spec)
        pixels = fit(image, spec)
        found.append(measure(pixels, classifier(pixels[None])[0], image.size))
    return found


def pick(pool: Features, n: int) -> Features:
    """Draws with replacement."""
    return [pool[i] for i in RANDOM.integers(len(pool), size=n)]


def mixed(clean: Features, strange: Features, share: float) -> Callable[[int], Features]:
    """Traffic of which a share is strange."""

    def traffic(n: int) -> Features:
        from_strange = RANDOM.random(n) < share
        pairs = zip(from_strange, pick(strange, n), pick(clean, n), strict=True)
        return [one if is_strange else other for is_strange, one, other in pairs]

    return traffic


def first_alarm(window: Window, traffic: Features) -> tuple[int, set[str]] | None:
    """After how many images, at which features."""
    for start in range(0, len(traffic), STEP):
        window.count(traffic[start : start + STEP])
        if found := {name for name, one in window.drift().items() if one.psi > one.limit}:
            return start + STEP, found
    return None


def print_table(
    name: str, reference: Reference, clean: Callable[[int], Features], kinds: dict[str, Callable[[int], Features]]
) -> None:
    """False alarms of clean traffic, then each kind of drift."""
    alarms = [first_alarm(Window(reference, SIZE), clean(CLEAN_IMAGES)) for _ in range(CLEAN_RUNS)]
    false = [alarm for alarm in alarms if alarm]
    print(f"### {name}: a reference of {sum(reference.histograms['size'].counts):,} images\n")
    by_feature = Counter(feature for _, features in false for feature in features)
    print(f"Clean traffic: an alarm in {len(false)} of {CLEAN_RUNS} runs of {CLEAN_IMAGES:,} images {dict(by_feature) or ''}\n")
    print("| what comes from now on | after a start | after a window of clean traffic | noticed first in |\n|---|---|---|---|")
    for kind, traffic in kinds.items():
        fresh = [first_alarm(Window(reference, SIZE), traffic(MAX_IMAGES)) for _ in range(RUNS)]
        later = [first_alarm(filled(reference, clean), traffic(MAX_IMAGES)) for _ in range(RUNS)]
        seen = [feature for alarm in fresh if alarm for feature in alarm[1]]
        often = [one for one in sorted(set(seen), key=seen.count, reverse=True) if seen.count(one) >= RUNS / 10]
        print(f"| {kind} | {summary(fresh)} | {summary(later)} | {', '.join(often) or '–'} |", flush=True)
    print()


def filled(reference: Reference, clean: Callable[[int], Features]) -> Window:
    """A window full of clean traffic."""
    window = Window(reference, SIZE)
    for _ in range(2):
        window.count(clean(SIZE // 2))
    return window


def summary(alarms: Sequence[tuple[int, set[str]] | None]) -> str:
    """Median and 95th percentile of the images it took; runs without an alarm count as endless."""
    images = sorted(alarm[0] if alarm else MAX_IMAGES + 1 for alarm in alarms)
    median, high = (images[int(len(images) * share)] for share in (0.5, 0.95))
    return " / ".join(f"{one:,}" if one <= MAX_IMAGES else "not noticed" for one in (median, high))


if __name__ == "__main__":
    main()
