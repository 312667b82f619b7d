"""LitServe: workers that decode and compute, behind API processes."""

import os

import litserve
from common import BATCH, PORT, WAIT_MS, WORKERS, Network
from fastapi import UploadFile


class Classifier(litserve.LitAPI):
    """See the module."""

    def setup(self, device):  # noqa: ARG002 (LitServe's signature)
        self._network = Network()

    def decode_request(self, request: UploadFile):
        return self._network.decode(request.file.read())

    def batch(self, inputs):
        return inputs

    def predict(self, x):
        return self._network.classify(x) if BATCH > 1 else self._network.classify([x])[0]

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=BATCH, batch_timeout=WAIT_MS / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, timeout=60)
    servers = int(os.environ["BENCH_API_SERVERS"])
    server.run(host="127.0.0.1", port=PORT, num_api_servers=servers, generate_client_file=False, log_level="warning")
