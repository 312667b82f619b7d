"""A trained network to the ONNX graph that is served: uint8 pixels in, calibrated probabilities out.

images uint8 (batch, height, width, channels) → transpose, cast, scale → network → logits / temperature → softmax
"""

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from app.classifier import INPUT, OUTPUT, Probabilities
from app.image import Pixels
from app.spec import InputSpec
from training.batches import EVALUATION_BATCH, to_float
from training.errors import TrainingError
from training.model_file import open_session, strip

OPSET = 20  # the newest that changes nothing for these networks; older readers keep working
MAX_DIFFERENCE = 1e-4  # of any probability between torch and onnxruntime


class ServedNetwork(nn.Module):
    """The network with everything around it that belongs into the model file."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """uint8 `(batch, height, width, channels)` → float32 `(batch, classes)`."""
        logits = self.network(to_float(images.permute(0, 3, 1, 2)))
        return torch.softmax(logits / self.temperature, dim=1)


def export_graph(served: ServedNetwork, spec: InputSpec) -> onnx.ModelProto:
    """The ONNX model of a network, with a free batch size, checked, without metadata."""
    served.eval()
    program = torch.onnx.export(
        served,
        # Two images: of one, the exporter would take the batch size as fixed.
        (torch.zeros(2, *spec.shape, dtype=torch.uint8),),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = strip(program.model_proto)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def check_parity(model: onnx.ModelProto, served: ServedNetwork, pixels: Pixels) -> str:
    """Compares onnxruntime's answers with torch's on all of `pixels`; returns a sentence on it.

    Raises: TrainingError when they differ by more than `MAX_DIFFERENCE` or on which class is first.
    """
    session = open_session(model)
    batches = np.array_split(pixels, -(-len(pixels) // EVALUATION_BATCH))
    theirs = np.concatenate([session.run([OUTPUT], {INPUT: batch})[0] for batch in batches])
    ours = np.concatenate([_run(served, batch) for batch in batches])
    worst = float(np.abs(theirs - ours).max())
    n_different = int((theirs.argmax(axis=1) != ours.argmax(axis=1)).sum())
    if not worst <= MAX_DIFFERENCE or n_different:  # so that NaN fails too
        raise TrainingError(
            f"the exported graph does not compute what was trained: on {len(pixels)} validation images its probabilities "
            f"differ by up to {worst:.2g} (allowed: {MAX_DIFFERENCE:.0g}) and its first class on {n_different}"
        )
    return f"onnxruntime and torch agree on all {len(pixels)} validation images, |Δp| ≤ {worst:.1e}"


@torch.inference_mode()
def _run(served: ServedNetwork, batch: Pixels) -> Probabilities:
    probabilities: Probabilities = served(torch.from_numpy(batch)).numpy()
    return probabilities
