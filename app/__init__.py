"""ConvServe's service: image bytes in, calibrated class probabilities out."""

__version__ = "0.1.0"
