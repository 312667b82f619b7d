"""The service of a hundred tutorials: FastAPI, an uploaded file, a session at module level. uvicorn runs it."""

import os

from common import Network
from fastapi import FastAPI, UploadFile

app = FastAPI()
network = Network()


def predict(file: UploadFile):
    return network.classify([network.decode(file.file.read())])[0]


async def predict_in_loop(file: UploadFile):
    return network.classify([network.decode(await file.read())])[0]


app.post("/predict")(predict_in_loop if os.environ["BENCH_IN_LOOP"] == "1" else predict)
