"""What travels over the wire, as pydantic models: the source of the OpenAPI page and of the tests' checks.

Answers are written by hand in `routes.py` for speed; a test holds them against these models.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.drift import Drift
from app.settings import DIGEST
from app.spec import AcceptRule, Figures, InputSpec, Provenance


class Wire(BaseModel):
    """Base of all answers: nothing undeclared travels."""

    model_config = ConfigDict(extra="forbid")


class ModelRef(Wire):
    """Which model answered."""

    name: str
    version: str


class Prediction(Wire):
    """One class and how probable it is."""

    label: str
    class_index: int
    probability: float = Field(ge=0, le=1, description="calibrated: of answers at 0.9, about 90 % are right")


class Explanation(Wire):
    """Where in the image the evidence for one class lies."""

    method: Literal["class_activation_map", "occlusion"]
    label: str
    class_index: int
    passes: int = Field(description="how often the network ran for this answer")
    evidence: list[list[float]] = Field(
        description=(
            "rows of places, the highest speak most for the class. class_activation_map: what each place adds to the class's "
            "logit, over the mean of all classes; occlusion: how much ln(probability) falls when the place is covered"
        )
    )
    box: list[float] = Field(
        min_length=4,
        max_length=4,
        description="where the places lie in the upright image: left, top, right, bottom, in shares of its width and height",
    )
    overlay: str = Field(description="base64 of a transparent PNG of the image's shape, to lay over the whole upright image")


class PredictAnswer(Wire):
    """Answer of `POST /predict`."""

    model: ModelRef
    predictions: list[Prediction] = Field(description="most probable first")
    accepted: bool = Field(description="false: under the model's accept threshold, treat as none of these")
    request_id: str
    explanation: Explanation | None = Field(default=None, description="where it was asked for")


class Problem(Wire):
    """An error, as RFC 9457 `application/problem+json`."""

    type: str = Field(description="urn of the reason")
    title: str
    status: int
    detail: str = Field(description="what to do")
    instance: str = Field(description="urn of this request")
    reason: str = Field(description="stable word for programs")
    request_id: str
    retry_after_seconds: float | None = Field(default=None, description="with 503: when to come back")
    errors: list[dict[str, str]] | None = Field(default=None, description="with bad parameters: which and why")


class BatchResult(Wire):
    """One image's result: predictions, or a problem of its own."""

    predictions: list[Prediction] | None = None
    accepted: bool | None = None
    problem: Problem | None = None


class BatchAnswer(Wire):
    """Answer of `POST /predict/batch`: one result per image, in the order sent."""

    model: ModelRef
    results: list[BatchResult]
    request_id: str


class ModelChange(Wire):
    """Body of `POST /admin/model`."""

    path: str = Field(default="", pattern=r"^[^/\\\x00]*$", description="name of a file beside CONVSERVE_MODEL; none: that")
    sha256: str = Field(default="", pattern=DIGEST, description="that the file must have; not to be left out with `path`")
    shadow: float = Field(default=0, ge=0, le=1, description="share of live images that it must answer in shadow first")
    seconds: float = Field(default=60, ge=0, le=86_400, description="how long it stays in shadow")
    agreement: float = Field(default=0.9, ge=0, le=1, description="share of those that must get the same label in shadow")


class Base64Image(Wire):
    """Body of `POST /predict` as JSON."""

    image: str = Field(description="the encoded image file in base64; a data: URL is taken too")


class QueueState(Wire):
    """How busy the engine is."""

    waiting: int = Field(description="images that wait for a thread")
    in_progress: int = Field(description="images that wait or run")
    estimated_wait_seconds: float


class Health(Wire):
    """Answer of `GET /health`."""

    status: Literal["ok", "draining", "stalled"]
    model: ModelRef
    service_version: str
    provider: str
    threads: int
    uptime_seconds: float
    queue: QueueState
    drift: dict[str, Drift] | None = Field(description="by feature, from 100 images on; null: nothing to compare with")


class ProbeAnswer(Wire):
    """Answer of `GET /livez` and `GET /readyz`."""

    status: str


class ModelCard(Wire):
    """Answer of `GET /model`: the spec without its goldens, and which file it is."""

    name: str
    version: str
    created: datetime
    description: str
    labels: list[str]
    input: InputSpec
    temperature: float
    accept: AcceptRule | None
    figures: list[Figures]
    provenance: Provenance
    sha256: str
    provider: str
