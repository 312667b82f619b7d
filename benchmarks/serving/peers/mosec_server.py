"""Mosec: one stage, so that decoding runs in the same process as the session."""

from common import BATCH, WAIT_MS, WORKERS, Network
from mosec import Server, Worker


class Classifier(Worker):
    """See the module."""

    def __init__(self):
        super().__init__()
        self._network = Network()

    def deserialize(self, data):
        return self._network.decode(data)

    def forward(self, data):
        return self._network.classify(data) if BATCH > 1 else self._network.classify([data])[0]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classifier, num=WORKERS, max_batch_size=BATCH, max_wait_time=int(WAIT_MS))
    server.run()
