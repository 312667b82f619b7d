"""What the images of validation are like, and the answers to them: kept in the model file, for a service to notice drift."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from app.classifier import Probabilities
from app.drift import measure
from app.spec import FEATURES, Histogram, Reference
from training.data_set import read_samples
from training.evaluate import classify_all, open_model
from training.files import unfinished_beside
from training.folder import Part
from training.model_file import write_model
from training.pixels import Samples

MAX_BINS = 10  # of classes twice as many; where there are still more, neighbours in the list of labels share one
MIN_PER_BIN = 5  # images


def describe(data: str, samples: Samples, probabilities: Probabilities) -> Reference:
    """The reference of images named `data`, from what the model file answers to them, float32 `(n, classes)`."""
    columns = [np.array(one) for one in zip(*map(measure, samples.pixels, probabilities, samples.sizes), strict=True)]
    edges = [_even_edges(values, MAX_BINS) for values in columns]
    n_classes = probabilities.shape[1]
    edges[0] = np.arange(n_classes - 1.0) if n_classes <= 2 * MAX_BINS else _even_edges(columns[0], 2 * MAX_BINS)
    return Reference(data=data, histograms=dict(zip(FEATURES, map(_count, columns, edges), strict=True)))


def add_reference(path: Path, root: Path, part: Part | Literal["all"]) -> str:
    """Puts the reference of one part of the data set at `root` into the model file at `path`, which proves itself anew.

    Raises: InputError, TrainingError, ModelError.
    """
    classifier = open_model(path)
    samples = read_samples(root, part, classifier.spec)
    reference = describe(f"{root.resolve().name}/{part}", samples, classify_all(classifier, samples.pixels))
    with unfinished_beside(path) as unfinished:
        write_model(onnx.load(path), classifier.spec.model_copy(update={"reference": reference}), unfinished, threads=1)
        unfinished.replace(path)
    return f"wrote {path}, with {len(samples):,} images of {reference.data} to compare with"


def _even_edges(values: NDArray[Any], bins: int) -> NDArray[Any]:
    """Edges between bins of about equally many values, and around all: beyond what was seen are bins of their own."""
    shares = np.linspace(0, 1, max(2, min(bins, len(values) // MIN_PER_BIN)) + 1)
    return np.unique([np.nextafter(values.min(), -np.inf), *np.quantile(values, shares[1:], method="inverted_cdf")])


def _count(values: NDArray[Any], edges: NDArray[Any]) -> Histogram:
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))
