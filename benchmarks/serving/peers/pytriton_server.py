"""NVIDIA's Triton with its Python backend, through PyTriton: dynamic batching in C++, one process for each instance."""

import os

import numpy as np
from common import BATCH, PORT, WAIT_MS, WORKERS, Network
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


class Instance:
    """Made in the parent, its session in the process that calls it first."""

    def __init__(self):
        self._network = None

    def __call__(self, requests):
        self._network = self._network or Network()
        images = [self._network.decode(data) for request in requests for data in np.ravel(request.data["image"])]
        rows = [answer["classes"] + answer["probabilities"] for answer in self._network.classify(images)]
        return [{"answer": np.array([row], np.float32)} for row in rows]


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1", http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2, log_verbose=0, exit_on_error=True
    )
    os.environ["OMP_NUM_THREADS"] = "1"
    with Triton(config=config) as triton:
        triton.bind(
            model_name="classifier",
            infer_func=[Instance() for _ in range(WORKERS)],
            inputs=[Tensor(name="image", dtype=np.bytes_, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=np.float32, shape=(10,))],
            config=ModelConfig(max_batch_size=BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=int(WAIT_MS * 1000))),
            strict=False,
        )
        triton.serve()
