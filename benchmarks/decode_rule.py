"""What decoding JPEGs at a reduced scale changes in the answers: the figures of docs/decoding.md.

    python -m benchmarks.decode_rule FOLDER [--labelled] [--plain imagenet-plain.onnx] [--noise 6]

Each photograph under FOLDER is scaled up to 3 and 12 megapixels and saved as JPEG (quality 90). Then it is decoded in full, and
by the model's rule with `decode_oversampling` 1, 2 and 4; the answers are compared. With --labelled, folders are named
`<index> <name>` as in imagenet_500 and accuracy is compared too. An enlarged photograph has little fine detail, which is what
reducing loses; noise of each pixel (in levels) gives it some.
"""

import argparse
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from app.classifier import Classifier
from app.image import Pixels, decode, fit
from app.spec import InputSpec
from training.evaluate import classify_all

MEGAPIXELS = (3, 12)
OVERSAMPLING = (1.0, 2.0, 4.0)
FULL = 1000.0
THREADS = 2


def enlarge(path: Path, megapixels: int, noise: float) -> bytes:
    """The photograph at this size, as a camera would save it."""
    image = Image.open(path).convert("RGB")
    scale = (megapixels * 1e6 / image.width / image.height) ** 0.5
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    if noise:
        pixels = np.asarray(image, np.int16)
        grain = np.random.default_rng(0).normal(scale=noise, size=pixels.shape[:2])[..., np.newaxis]
        image = Image.fromarray((pixels + grain.astype(np.int16)).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def read_all(paths: Sequence[Path], megapixels: int, noise: float, spec: InputSpec) -> dict[float, Pixels]:
    """What each rule makes of the photographs: uint8 `(n, height, width, 3)`."""
    rules = [spec.model_copy(update={"decode_oversampling": one}) for one in (FULL, *OVERSAMPLING)]

    def read(path: Path) -> list[Pixels]:
        data = enlarge(path, megapixels, noise)
        return [fit(decode(data, rule), rule) for rule in rules]

    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(read, paths))
    return {rule.decode_oversampling: np.stack(column) for rule, column in zip(rules, zip(*rows, strict=True), strict=True)}


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th photograph")
    parser.add_argument("--labelled", action="store_true", help="folders are named by the index of the class")
    parser.add_argument("--plain", type=Path, help="the fp32 model file, for its weights")
    parser.add_argument("--noise", type=float, default=0.0)
    options = parser.parse_args()
    paths = sorted(options.folder.rglob("*.jpg"))[:: options.every]
    truth = np.array([int(path.parent.name.split()[0]) for path in paths]) if options.labelled else None
    int8 = Classifier.load(Path("models/imagenet.onnx"), threads=THREADS)
    classifiers = {"int8": int8} | ({"fp32": Classifier.load(options.plain, threads=THREADS)} if options.plain else {})
    print(f"{len(paths)} photographs of {options.folder.name}, noise {options.noise:g}\n")
    print("| megapixels | oversampling | weights | same pixels | mean Δpixel | same first class | mean Δp | accuracy |")
    print("|---" * 8 + "|")
    for megapixels in MEGAPIXELS:
        pixels = read_all(paths, megapixels, options.noise, int8.spec.input)
        for name, classifier in classifiers.items():
            answers = {rule: classify_all(classifier, batch) for rule, batch in pixels.items()}
            for rule, mine in answers.items():
                full, first = answers[FULL], answers[FULL].argmax(axis=1)
                same = (pixels[rule] == pixels[FULL]).all(axis=(1, 2, 3)).mean()
                off = np.abs(pixels[rule].astype(np.int16) - pixels[FULL]).mean()
                agree = (mine.argmax(axis=1) == first).mean()
                rows = np.arange(len(first))
                dp = np.abs(mine[rows, first] - full[rows, first]).mean()
                accuracy = "" if truth is None else f"{(mine.argmax(axis=1) == truth).mean():.2%}"
                title = "full" if rule == FULL else f"{rule:g}"
                print(
                    f"| {megapixels} | {title} | {name} | {same:.0%} | {off:.2f} | {agree:.2%} | {dp:.4f} | {accuracy} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
