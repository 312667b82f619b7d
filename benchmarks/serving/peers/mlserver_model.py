"""MLServer: parallel workers with adaptive batching. Run as a script it writes its settings and starts the server."""

import json
import os
import sys
from pathlib import Path

from common import BATCH, PORT, WAIT_MS, WORKERS, Network
from mlserver import MLModel
from mlserver.codecs import Base64Codec
from mlserver.types import InferenceResponse, ResponseOutput


class Classifier(MLModel):
    """See the module."""

    async def load(self):
        self._network = Network()
        return True

    async def predict(self, payload):
        images = [self._network.decode(data) for data in Base64Codec.decode_input(payload.inputs[0])]
        rows = [answer["classes"] + answer["probabilities"] for answer in self._network.classify(images)]
        data = [number for row in rows for number in row]
        output = ResponseOutput(name="answer", shape=[len(rows), 10], datatype="FP64", data=data)
        return InferenceResponse(model_name=self.name, outputs=[output])


def write_settings(folder: Path) -> None:
    server = {
        "host": "127.0.0.1",
        "http_port": PORT,
        "grpc_port": PORT + 1,
        "metrics_port": PORT + 2,
        "parallel_workers": WORKERS,
        "debug": False,
    }
    batching = {"max_batch_size": BATCH, "max_batch_time": WAIT_MS / 1000} if BATCH > 1 else {}
    model = {"name": "classifier", "implementation": "mlserver_model.Classifier", **batching}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))


if __name__ == "__main__":
    folder = Path(os.environ["BENCH_WORK"], "mlserver")
    write_settings(folder)
    command = Path(sys.executable).with_name("mlserver")
    os.execv(command, [str(command), "start", str(folder)])
