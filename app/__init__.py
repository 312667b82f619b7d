"""ConvServe's service: image bytes in, calibrated class probabilities out."""

import os

__version__ = "0.1.0"

# Else onnxruntime's packages, from 1.29 on, tell Microsoft of each model that is loaded, by name and hash.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
