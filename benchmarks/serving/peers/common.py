"""What the peers share, so that they differ by their server alone: session, decoding and answer. Settings come as BENCH_*."""

import io
import os

import numpy as np
import onnxruntime as ort
from PIL import Image

MODEL = os.environ["BENCH_MODEL"]
PORT = int(os.environ["BENCH_PORT"])
WORKERS = int(os.environ["BENCH_WORKERS"])
THREADS = int(os.environ["BENCH_THREADS"])  # of one session; 0 = onnxruntime's default, all cores
BATCH = int(os.environ["BENCH_BATCH"])
WAIT_MS = float(os.environ["BENCH_WAIT_MS"])


class Network:
    """The model in a session. Scaling and softmax are in its graph, so pixels stay uint8."""

    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        self._session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        _, self._height, self._width, channels = self._session.get_inputs()[0].shape
        self._mode = "L" if channels == 1 else "RGB"

    def decode(self, data):
        """An encoded image → uint8 (height, width, channels)."""
        image = Image.open(io.BytesIO(data)).convert(self._mode)
        if image.size != (self._width, self._height):
            image = image.resize((self._width, self._height), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(self._height, self._width, -1)

    def classify(self, images):
        """Decoded images → one dictionary each."""
        return [top(row) for row in self._session.run(["probabilities"], {"images": np.stack(images)})[0]]


def top(row):
    """The five most probable classes."""
    best = np.argpartition(row, -5)[-5:]
    best = best[np.argsort(-row[best])]
    return {"classes": best.tolist(), "probabilities": row[best].tolist()}
