"""The model's description of itself: what training writes into the `.onnx` file and serving reads out of it.

The spec travels as JSON under the metadata key `convserve.spec`, so that labels, input rule, calibration, measured figures
and goldens are one object with the weights. Unknown keys are refused: a newer file is never half-understood.
"""

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import ModelError

SPEC_KEY = "convserve.spec"

Fraction = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[int, Field(ge=0, le=255)]
Feature = Literal["predicted_class", "top_probability", "brightness", "contrast", "aspect", "size"]
FEATURES: tuple[Feature, ...] = get_args(Feature)


class Frozen(BaseModel):
    """Base of the spec's parts: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(Frozen):
    """How an image of any kind and size becomes the network's pixels, uint8 `(height, width, channels)`."""

    height: int = Field(ge=1, le=4096, description="pixels")
    width: int = Field(ge=1, le=4096, description="pixels")
    channels: Literal[1, 3] = Field(description="1 = grey, 3 = RGB")
    resize: Literal["stretch", "crop", "pad", "ink"] = Field(
        default="stretch",
        description=(
            "stretch: to the size, whatever the shape; crop: the largest centred part of the target's shape; pad: the whole "
            "image, centred on the background; ink: find the strokes, scale their box to 20/28 of the frame and centre it by "
            "mass, as MNIST was made. An image that already has the size is taken as it is."
        ),
    )
    filter: Literal["bilinear", "bicubic", "lanczos", "box"] = Field(
        default="bilinear", description="resampling filter, always antialiased (Pillow's)"
    )
    crop_fraction: float = Field(
        default=1.0, gt=0, le=1, description="for crop: the share of the shorter side that is kept (224 of 256 = 0.875)"
    )
    decode_oversampling: float = Field(
        default=2.0,
        ge=1,
        description="a JPEG is decoded at 1/2, 1/4 or 1/8 scale while its shorter side stays this many times the target's",
    )
    polarity: Literal["any", "light_on_dark"] = Field(
        default="any", description="light_on_dark: an image whose border is light is inverted before anything else"
    )
    background: tuple[Level, Level, Level] = Field(
        default=(255, 255, 255), description="RGB that shows through transparent pixels and fills padding"
    )

    @model_validator(mode="after")
    def _ink_is_grey(self) -> Self:
        if self.channels != 1 and (self.resize == "ink" or self.polarity == "light_on_dark"):
            raise ValueError("resize = ink and polarity = light_on_dark are for grey models (channels = 1)")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.height, self.width, self.channels

    @property
    def decode_side(self) -> float:
        """The shorter side, in pixels, below which a JPEG is never reduced while decoding."""
        crop_fraction = self.crop_fraction if self.resize == "crop" else 1.0
        return self.decode_oversampling * max(self.height, self.width) / crop_fraction


class AcceptRule(Frozen):
    """When an answer counts: the top probability must reach `threshold`."""

    threshold: Fraction
    precision: Fraction = Field(description="share of accepted answers that were right where the threshold was chosen")
    coverage: Fraction = Field(description="share of images accepted there")
    chosen_on: str = Field(description="the data set it was chosen on")


class Figures(Frozen):
    """What the model file scored on one data set, and how that was measured."""

    data: str
    n: int = Field(ge=1, description="images")
    accuracy: Fraction
    macro_f1: Fraction
    ece: Fraction = Field(description="expected calibration error, 15 bins of equal width")
    log_loss: float = Field(ge=0, description="nats")
    measured_by: str


class Provenance(Frozen):
    """Where the weights come from, enough to make them again."""

    data_digest: str = Field(description="sha256 over the sorted (label, sha256 of file) pairs of the training images")
    n_training_images: int = Field(ge=0)
    recipe: str
    seed: int
    git_commit: str
    libraries: dict[str, str] = Field(description="name to version")
    licence: str = ""
    note: str = ""


class Golden(Frozen):
    """An encoded image with the probabilities the model must give for it."""

    image: str = Field(description="base64 of the encoded image file")
    probabilities: tuple[Fraction, ...]
    tolerance: float = Field(gt=0, lt=0.1, description="largest absolute difference of any probability")

    @classmethod
    def of(cls, data: bytes, probabilities: list[float], tolerance: float) -> Self:
        """A golden of the encoded image `data`."""
        return cls(image=base64.b64encode(data).decode(), probabilities=tuple(probabilities), tolerance=tolerance)

    @property
    def data(self) -> bytes:
        """The encoded image."""
        return base64.b64decode(self.image, validate=True)


class Histogram(Frozen):
    """How many images fell into each bin."""

    edges: tuple[float, ...] = Field(
        min_length=1, description="the upper ends of all bins but the last, which are part of them"
    )
    counts: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _bins_and_edges_agree(self) -> Self:
        if sorted(set(self.edges)) != list(self.edges) or len(self.counts) != len(self.edges) + 1 or not any(self.counts):
            raise ValueError("edges must rise, and there must be a count for each bin, one more than edges, and some image")
        return self


class Reference(Frozen):
    """What live traffic is compared with: images, as `app.drift.measure` sees them."""

    data: str
    histograms: dict[Feature, Histogram] = Field(min_length=len(FEATURES))


class ModelSpec(Frozen):
    """All that a server, a client or a person needs to know of the model beside its weights."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: str = Field(min_length=1, max_length=64)
    created: datetime
    description: str = ""
    labels: tuple[str, ...] = Field(min_length=2)
    input: InputSpec
    temperature: float = Field(default=1.0, gt=0, description="divides the logits inside the graph")
    accept: AcceptRule | None = None
    figures: tuple[Figures, ...] = ()
    reference: Reference | None = None
    provenance: Provenance
    goldens: tuple[Golden, ...] = Field(min_length=1, max_length=3)

    @model_validator(mode="after")
    def _labels_and_goldens_agree(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be unique")
        if any(len(golden.probabilities) != len(self.labels) for golden in self.goldens):
            raise ValueError("each golden needs one probability per label")
        return self

    def accepts(self, top_probability: float) -> bool:
        """Whether an answer with this top probability counts."""
        return self.accept is None or top_probability >= self.accept.threshold

    def to_metadata(self) -> dict[str, str]:
        """The ONNX metadata: our key, and the keys other readers look for.

        Source: Ultralytics' `names`, `imgsz`, `task`; ONNX `docs/MetadataProps.md` for `Image.*`.
        """
        return {
            SPEC_KEY: self.model_dump_json(),
            "names": json.dumps(self.labels, ensure_ascii=False),
            "imgsz": json.dumps([self.input.height, self.input.width]),
            "task": "classify",
            "version": self.version,
            "date": self.created.isoformat(),
            "description": self.description,
            "Image.BitmapPixelFormat": "Gray8" if self.input.channels == 1 else "Rgb8",
            "Image.ColorSpaceGamma": "SRGB",
            "Image.NominalPixelRange": "NominalRange_0_255",
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Reads the spec back.

        Raises: ModelError when the key is missing or its content is not a spec of a known version.
        """
        if SPEC_KEY not in metadata:
            raise ModelError(f"it has no {SPEC_KEY} in its metadata, so it was not exported by ConvServe's training")
        try:
            return cls.model_validate_json(metadata[SPEC_KEY])
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise ModelError(f"its {SPEC_KEY} cannot be read: {where}: {first['msg']}") from error
