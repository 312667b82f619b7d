"""Whether explanations point at what the model goes by: deletion and insertion, against a guess and against the image's centre.

    python -m benchmarks.explanations FOLDER [--model models/imagenet.onnx] [--images 100]

FOLDER/<label>/*: photographs. Each is cut into 14 × 14 patches. Deletion blurs them, the hottest first: a good map makes the
probability of the first class fall soon. Insertion starts from the blurred image and puts the hottest back first: it should
rise soon. Printed are the mean probability over all steps and images, with its standard error, and in how many images the map
beats the centre. Source: Petsiuk, Das and Saenko, "RISE", 2018.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from app.classifier import Classifier
from app.explain import contrast, occlude
from app.image import Pixels, decode, fit

PATCHES = 14  # in a row
STEPS = 14
BLUR = 12  # pixels, of 224

Map = NDArray[np.float32]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=Path("models/imagenet.onnx"))
    parser.add_argument("--images", type=int, default=100)
    options = parser.parse_args()
    classifier = Classifier.load(options.model, device="cpu", threads=2)
    files = sorted(path for path in options.folder.glob("*/*") if path.is_file())
    chosen = np.random.default_rng(0).permutation(len(files))[: options.images]
    scores: dict[str, list[tuple[float, float]]] = {}
    seconds: dict[str, float] = {}
    for number in chosen:
        pixels = fit(decode(files[number].read_bytes(), classifier.spec.input), classifier.spec.input)
        for name, heat in draw_maps(classifier, pixels, int(number), seconds).items():
            scores.setdefault(name, []).append(score(classifier, pixels, heat))
    centre = np.array(scores["centre"])
    head = "".join(f"{game:>18}{'beats centre':>14}" for game in ("deletion", "insertion"))
    print(f"{len(chosen)} images, {options.model.name}\n\n{'map':12}{head}")
    for name, pairs in scores.items():
        mean, error = np.mean(pairs, axis=0), np.std(pairs, axis=0) / len(pairs) ** 0.5
        better = (np.array(pairs) * [1, -1] < centre * [1, -1]).mean(axis=0)
        cells = [f"{mean[side]:>10.3f} ± {error[side]:.3f}{better[side]:>14.0%}" for side in (0, 1)]
        print(f"{name:12}{''.join(cells)}   {1000 * seconds[name] / len(chosen) if name in seconds else 0:.0f} ms")


def draw_maps(classifier: Classifier, pixels: Pixels, seed: int, seconds: dict[str, float]) -> dict[str, Map]:
    """Evidence for the first class by each method, and the two that know nothing of the image."""
    begun = time.perf_counter()
    [probabilities], [maps] = classifier.explain(pixels[np.newaxis])
    first = int(probabilities.argmax())
    found = {"cam": contrast(maps, first), "cam, raw": maps[first]}
    seconds["cam"] = seconds.get("cam", 0) + time.perf_counter() - begun
    begun = time.perf_counter()
    found["occlusion"] = occlude(classifier, pixels, probabilities, first, lambda: None)
    seconds["occlusion"] = seconds.get("occlusion", 0) + time.perf_counter() - begun
    line = np.linspace(-1, 1, 7, dtype=np.float32) ** 2
    found["centre"] = -(line[:, np.newaxis] + line)
    found["random"] = np.random.default_rng(seed).random((7, 7), np.float32)
    return found


def score(classifier: Classifier, pixels: Pixels, heat: Map) -> tuple[float, float]:
    """Mean probability of the first class under deletion and under insertion."""
    image = Image.fromarray(pixels)
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(BLUR)))
    first = int(classifier(pixels[np.newaxis])[0].argmax())
    fine = np.asarray(Image.fromarray(heat).resize((PATCHES, PATCHES), Image.Resampling.BICUBIC))
    rank = np.argsort(np.argsort(-fine, axis=None)).reshape(fine.shape)
    rank = np.kron(rank, np.ones((pixels.shape[0] // PATCHES, pixels.shape[1] // PATCHES), int))[:, :, np.newaxis]
    limits = np.arange(1, STEPS + 1) * PATCHES**2 // (STEPS + 1)
    pair = [
        float(classifier(np.stack([np.where(rank < limit, *layers) for limit in limits]))[:, first].mean())
        for layers in ((blurred, pixels), (pixels, blurred))
    ]
    return pair[0], pair[1]


if __name__ == "__main__":
    main()
