"""What a user writes to serve a model with FastAPI and ONNX Runtime; `MODEL` says which.

Blocking work runs in the framework's pool of threads, as its documentation asks for.
"""

import io
import os

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from pipelines import PIPELINES

app = FastAPI()
model = PIPELINES[os.environ["MODEL"]]()


class Rows(BaseModel):
    rows: list[list[float]]


class Texts(BaseModel):
    texts: list[str]


@app.post("/tabular")
def tabular(body: Rows):
    labels, probabilities = model(body.rows)
    return {"labels": labels.tolist(), "probabilities": probabilities.tolist()}


@app.post("/image")
async def image(request: Request):
    labels, probabilities = await run_in_threadpool(model, io.BytesIO(await request.body()))
    return {"labels": labels, "probabilities": probabilities.tolist()}


@app.post("/embed")
def embed(body: Texts):
    return {"embeddings": model(body.texts).tolist()}
