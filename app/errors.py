"""The errors of the service, each with the HTTP status it becomes; 500 where nothing is said: a bug, or no start at all.

`reason` is for programs and never changes; `title` is for people; `str(error)` says what to do.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar


class ConvServeError(Exception):
    """Base of every error this service raises on purpose; those that are derived name what differs from their own base."""

    status: ClassVar[int] = 500
    reason: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init_subclass__(cls, **fields: int | str) -> None:
        for name, value in fields.items():
            setattr(cls, name, value)


class ModelError(ConvServeError, status=422, reason="model_refused", title="Model cannot be loaded"):
    """The model file cannot be loaded or fails its own goldens: start-up stops, and a running service keeps its model."""


class SettingsError(ConvServeError, reason="settings", title="Settings cannot be used"):
    """A `CONVSERVE_` variable is unknown or has a value that cannot be used; start-up stops."""


class MalformedRequestError(ConvServeError, status=400, reason="malformed_request", title="Malformed request"):
    """The body is empty, or not the multipart, JSON or base64 it claims to be."""


class UnauthorizedError(ConvServeError, status=401, reason="unauthorized", title="Unauthorized"):
    """No API key, or one that is not in the keys file."""


class UnknownModelError(ConvServeError, status=404, reason="unknown_model", title="Unknown model"):
    """The model or version asked for is not the one that is served."""


class BodyTimeoutError(ConvServeError, status=408, reason="body_timeout", title="Request too slow"):
    """The head or the body did not arrive in time."""


class TooLargeError(ConvServeError, status=413, reason="too_large", title="Too large"):
    """Too many bytes, pixels or images."""


class UnsupportedImageError(ConvServeError, status=415, reason="unsupported_image", title="Unsupported image type"):
    """The bytes are not an image of a type the service takes."""


class UndecodableImageError(ConvServeError, status=422, reason="undecodable_image", title="Image does not decode"):
    """The bytes start like an image but do not decode."""


class BadParameterError(ConvServeError, status=422, reason="bad_parameter", title="Bad parameter"):
    """A query parameter or header has a value outside its range."""

    errors: Sequence[Mapping[str, str]] = ()  # parameter and message of each, when there are several


class HeadTooLargeError(ConvServeError, status=431, reason="head_too_large", title="Request head too large"):
    """The request line and headers are too many bytes, or the headers too many."""


class UnavailableError(ConvServeError, status=503):
    """The service cannot take the request now; `retry_after_seconds` says when to come back."""

    def __init__(self, detail: str, *, retry_after_seconds: float) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class OverloadedError(UnavailableError, reason="overloaded", title="Overloaded"):
    """The queue is full, or the request would wait past its deadline."""


class DrainingError(UnavailableError, reason="draining", title="Shutting down"):
    """The service is shutting down."""


class DeadlineExceededError(ConvServeError, status=504, reason="deadline_exceeded", title="Deadline exceeded"):
    """The request's deadline passed before its image could be run."""
