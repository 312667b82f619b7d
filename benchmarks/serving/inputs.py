"""What is sent and what answers it: a digit, a photograph at two sizes, and model files that see them as the peers do."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from app.classifier import Classifier
from app.image import decode, fit
from app.spec import InputSpec
from benchmarks.serving.contenders import ROOT, Top

DIGITS, SHIPPED = ROOT / "models" / "digits.onnx", ROOT / "models" / "imagenet.onnx"
# The whole image, stretched, bilinear, never reduced while decoding: what Pillow's `resize` does in every tutorial.
PLAIN = InputSpec(height=224, width=224, channels=3, resize="stretch", filter="bilinear", decode_oversampling=1000)
SIZES = {"photo": ((640, 480), 100_000), "12mp": ((4000, 3000), 3_600_000)}  # pixels, bytes as of a camera


def make_inputs(work: Path, photograph: Path | None) -> dict[str, bytes]:
    """The encoded images by name, also written to `work`."""
    digits, shipped = Classifier.load(DIGITS), Classifier.load(SHIPPED)
    source = photograph.read_bytes() if photograph else shipped.spec.goldens[0].data
    images = {"digit": digits.spec.goldens[0].data}
    images |= {name: make_photograph(source, size, n_bytes) for name, (size, n_bytes) in SIZES.items()}
    for name, data in images.items():
        (work / name).write_bytes(data)
    return images


def make_photograph(source: bytes, size: tuple[int, int], n_bytes: int) -> bytes:
    """A JPEG of `size`, with as much noise of a fixed seed as makes it about `n_bytes` long."""
    pixels = np.asarray(Image.open(io.BytesIO(source)).convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(0).normal(size=pixels.shape[:2]).astype(np.float32)[..., np.newaxis]
    low, high = 0.0, 64.0
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (middle, high) if len(_jpeg(pixels + middle * noise)) < n_bytes else (low, middle)
    return _jpeg(pixels + low * noise)


def make_plain_model(path: Path) -> Path:
    """EfficientNet-Lite0 in fp32 with the bundled model's labels and the peers' pixels. Needs torch."""
    if not path.exists():
        from benchmarks.imagenet import GOLDEN_PICTURES
        from training.backbones import load_backbone
        from training.graph import ServedNetwork, check_parity, export_graph
        from training.model_file import make_goldens, write_model

        served = ServedNetwork(load_backbone(), temperature=1.0)
        model = export_graph(served, PLAIN)
        pictures = [picture.read_bytes() for picture in GOLDEN_PICTURES]
        check_parity(model, served, np.stack([fit(decode(one, PLAIN), PLAIN) for one in pictures]))
        changes = {"input": PLAIN, "goldens": make_goldens(model, PLAIN, pictures), "accept": None, "figures": ()}
        unfinished = path.with_suffix(".unfinished")
        write_model(model, Classifier.load(SHIPPED).spec.model_copy(update=changes), unfinished, threads=1)
        unfinished.rename(path)
    return path


def reference(model: Path, image: bytes, *, as_peers: bool) -> Top:
    """What must be answered, from the session alone; `as_peers` decodes by Pillow's plain way instead of by app.image."""
    classifier = Classifier.load(model)
    spec = classifier.spec.input
    if as_peers:
        opened = Image.open(io.BytesIO(image)).convert("L" if spec.channels == 1 else "RGB")
        pixels = np.asarray(opened.resize((spec.width, spec.height), Image.Resampling.BILINEAR)).reshape(spec.shape)
    else:
        pixels = fit(decode(image, spec), spec)
    row = classifier(pixels[np.newaxis])[0]
    return [(int(index), float(row[index])) for index in np.argsort(-row)[:5]]


def _jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()
