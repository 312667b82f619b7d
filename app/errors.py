"""The errors of the service, each carrying the HTTP status it becomes.

    ConvServeError                   500 internal
    ├── ModelError                   422 model_refused: missing, broken or cannot prove itself; at start-up the end
    ├── SettingsError                a setting is unknown or out of range (start-up)
    ├── MalformedRequestError        400 malformed_request
    ├── UnauthorizedError            401 unauthorized
    ├── UnknownModelError            404 unknown_model
    ├── BodyTimeoutError             408 body_timeout
    ├── TooLargeError                413 too_large
    ├── UnsupportedImageError        415 unsupported_image
    ├── UndecodableImageError        422 undecodable_image
    ├── BadParameterError            422 bad_parameter
    ├── HeadTooLargeError            431 head_too_large
    ├── UnavailableError             503, with Retry-After
    │   ├── OverloadedError          503 overloaded
    │   └── DrainingError            503 draining
    └── DeadlineExceededError        504 deadline_exceeded

`reason` is for programs and never changes; `title` is for people; `str(error)` says what to do.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar


class ConvServeError(Exception):
    """Base of every error this service raises on purpose."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    reason: ClassVar[str] = "internal"


class ModelError(ConvServeError):
    """The model file cannot be loaded or fails its own goldens: start-up stops, and a running service keeps its model."""

    status = 422
    title = "Model cannot be loaded"
    reason = "model_refused"


class SettingsError(ConvServeError):
    """A `CONVSERVE_` variable is unknown or has a value that cannot be used; start-up stops."""

    title = "Settings cannot be used"
    reason = "settings"


class MalformedRequestError(ConvServeError):
    """The body is empty, or not the multipart, JSON or base64 it claims to be."""

    status = 400
    title = "Malformed request"
    reason = "malformed_request"


class UnauthorizedError(ConvServeError):
    """No API key, or one that is not in the keys file."""

    status = 401
    title = "Unauthorized"
    reason = "unauthorized"


class UnknownModelError(ConvServeError):
    """The model or version asked for is not the one that is served."""

    status = 404
    title = "Unknown model"
    reason = "unknown_model"


class BodyTimeoutError(ConvServeError):
    """The head or the body did not arrive in time."""

    status = 408
    title = "Request too slow"
    reason = "body_timeout"


class TooLargeError(ConvServeError):
    """Too many bytes, pixels or images."""

    status = 413
    title = "Too large"
    reason = "too_large"


class UnsupportedImageError(ConvServeError):
    """The bytes are not an image of a type the service takes."""

    status = 415
    title = "Unsupported image type"
    reason = "unsupported_image"


class UndecodableImageError(ConvServeError):
    """The bytes start like an image but do not decode."""

    status = 422
    title = "Image does not decode"
    reason = "undecodable_image"


class BadParameterError(ConvServeError):
    """A query parameter or header has a value outside its range."""

    status = 422
    title = "Bad parameter"
    reason = "bad_parameter"
    errors: Sequence[Mapping[str, str]] = ()  # parameter and message of each, when there are several


class HeadTooLargeError(ConvServeError):
    """The request line and headers are too many bytes, or the headers too many."""

    status = 431
    title = "Request head too large"
    reason = "head_too_large"


class UnavailableError(ConvServeError):
    """The service cannot take the request now; `retry_after_seconds` says when to come back."""

    status = 503

    def __init__(self, detail: str, *, retry_after_seconds: float) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class OverloadedError(UnavailableError):
    """The queue is full, or the request would wait past its deadline."""

    title = "Overloaded"
    reason = "overloaded"


class DrainingError(UnavailableError):
    """The service is shutting down."""

    title = "Shutting down"
    reason = "draining"


class DeadlineExceededError(ConvServeError):
    """The request's deadline passed before its image could be run."""

    status = 504
    title = "Deadline exceeded"
    reason = "deadline_exceeded"
