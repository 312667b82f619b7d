"""Turns a folder of labelled images into one model file that proves itself. Entry point: `python -m training`."""

import app as app  # before onnxruntime: turns its telemetry off
