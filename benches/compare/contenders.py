"""Who is compared: how each is started, asked and read. Requests carry the same data in each one's
own form; wisp and MLServer share the Open Inference Protocol's, wisp and FastAPI the bare photo.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support import ROOT, WISP, Process, Wisp, ask, wait_for  # noqa: E402

HERE = Path(__file__).resolve().parent
FASTAPI_VENV = ROOT / "target/compare-venv"
MLSERVER_VENV = ROOT / "target/compare-mlserver-venv"
# Its entry point, as a script of pip's names the folder that it was installed in.
MLSERVER = "import sys; from mlserver.cli import main; sys.argv[0] = 'mlserver'; main()"

# A row of the iris data, a photo, a sentence.
ROW = [5.0, 3.5, 1.3, 0.3]
SENTENCE = "A man is eating a slice of pizza."


@dataclass(frozen=True)
class Workload:
    name: str
    path: str  # what wisp serves
    model: str  # its name there
    photo: str = ""
    is_quick: bool = False  # thousands a second: too many for a generator in Python


WORKLOADS = [
    Workload("tabular", "target/zoo/skl-forest.onnx", "skl-forest", is_quick=True),
    Workload("digits", "models/digits", "digits", "tests/fixtures/photos/seven.png"),
    Workload("imagenet", "models/imagenet", "imagenet", "tests/fixtures/photos/cat.jpg"),
    Workload("minilm", "models/minilm", "minilm"),
]


@dataclass(frozen=True)
class Answer:
    """What a server made of the request: a label or none, and numbers that belong to it."""

    label: str
    numbers: list[float]


@dataclass(frozen=True)
class Request:
    path: str
    body: bytes
    headers: dict[str, str]


class Contender:
    """A way to serve. `threads` is for ONNX Runtime: 0 is its default."""

    def __init__(self, name, threads=0):
        self.name, self.threads = name, threads

    def start(self, workload, cores):
        """Returns the server with its first answer; `answered_ms` is when it had it."""
        server = self.launch(workload, cores)
        try:
            request = self.request(workload)
            wait_for(lambda: self.is_alive(server) and send(server.url, request)[0] == 200)
            server.answered_ms = (time.perf_counter() - server.started) * 1e3
            return server
        except BaseException:
            server.stop()
            raise

    def is_alive(self, server):
        if server.process.poll() is not None:
            sys.exit(f"{self.name} ended while it started:\n{server.log()}")
        return True

    def answer(self, server, workload):
        status, body = send(server.url, self.request(workload))
        if status != 200:
            sys.exit(f"{self.name}, {workload.name}: {status} {body.decode()}")
        return self.read(workload, json.loads(body))


def send(url, request):
    return ask(url, request.path, request.body, request.headers)


def photo(workload):
    return (ROOT / workload.photo).read_bytes()


def protocol_input(workload):
    if workload.name == "tabular":
        return {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": ROW}
    return {"name": "text", "datatype": "BYTES", "shape": [1], "data": [SENTENCE]}


def read_protocol(body):
    outputs = {output["name"]: output["data"] for output in body["outputs"]}
    if "embedding" in outputs:
        return Answer("", outputs["embedding"])
    numbers = outputs.get("probability") or outputs["probabilities"]
    return Answer(str(outputs["label"][0]), numbers)


class OfWisp(Contender):
    def launch(self, workload, cores):
        return Wisp(ROOT / workload.path, cores=cores)

    def request(self, workload):
        path = f"/v2/models/{workload.model}/infer"
        if workload.photo:
            kind = "image/png" if workload.photo.endswith("png") else "image/jpeg"
            return Request(path, photo(workload), {"content-type": kind})
        return Request(path, as_json({"inputs": [protocol_input(workload)]}), JSON)

    def read(self, workload, body):
        return read_protocol(body)

    def version(self):
        return subprocess.run([WISP, "--version"], capture_output=True, text=True).stdout.strip()


class OfFastApi(Contender):
    def launch(self, workload, cores):
        port = free_port()
        command = [FASTAPI_VENV / "bin/python", "-m", "uvicorn", "fastapi_app:app", "--port", port]
        command += ["--log-level", "warning", "--no-access-log"]
        environment = {"MODEL": workload.name, "THREADS": str(self.threads)}
        server = Process(command, cores, environment, HERE)
        server.url = f"http://127.0.0.1:{port}"
        return server

    def request(self, workload):
        if workload.photo:
            return Request("/image", photo(workload), {"content-type": "application/octet-stream"})
        if workload.name == "tabular":
            return Request("/tabular", as_json({"rows": [ROW]}), JSON)
        return Request("/embed", as_json({"texts": [SENTENCE]}), JSON)

    def read(self, workload, body):
        if workload.name == "minilm":
            return Answer("", body["embeddings"][0])
        labels, numbers = body["labels"], body["probabilities"]
        return Answer(str(labels[0]), numbers[0] if workload.name == "tabular" else numbers)

    def version(self):
        return versions(FASTAPI_VENV, ["fastapi", "uvicorn", "onnxruntime", "numpy", "pillow", "tokenizers"])


class OfMlServer(Contender):
    def launch(self, workload, cores):
        folder = tempfile.TemporaryDirectory()
        ports = [free_port() for _ in range(3)]
        settings = dict(zip(["http_port", "grpc_port", "metrics_port"], ports)) | {"debug": False, "host": "127.0.0.1"}
        model = {"name": workload.name, "implementation": "mlserver_model.Pipeline"}
        for name, content in [("settings", settings), ("model-settings", model)]:
            (Path(folder.name) / f"{name}.json").write_text(json.dumps(content))
        environment = {"THREADS": str(self.threads), "PYTHONPATH": str(HERE)}
        server = Process([MLSERVER_VENV / "bin/python", "-c", MLSERVER, "start", folder.name], cores, environment, folder.name)
        server.folder = folder  # removed with it
        server.url = f"http://127.0.0.1:{ports[0]}"
        return server

    def request(self, workload):
        if workload.photo:
            data = [base64.b64encode(photo(workload)).decode()]
            tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
            tensor["parameters"] = {"content_type": "base64"}
        else:
            tensor = protocol_input(workload)
        return Request(f"/v2/models/{workload.name}/infer", as_json({"inputs": [tensor]}), JSON)

    def read(self, workload, body):
        return read_protocol(body)

    def version(self):
        return versions(MLSERVER_VENV, ["mlserver", "fastapi", "onnxruntime", "numpy", "pillow", "tokenizers"])


JSON = {"content-type": "application/json"}


def as_json(value):
    return json.dumps(value).encode()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def versions(venv, packages):
    command = [venv / "bin/python", "-m", "pip", "freeze", "--disable-pip-version-check"]
    frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [re.search(rf"^{name}==(\S+)", frozen, re.M | re.I) for name in packages]
    return ", ".join(f"{name} {version.group(1)}" for name, version in zip(packages, found))


def hold(server, cores):
    """All its threads on those cores: ONNX Runtime's leave the ones that their process was given."""
    for pid in server.tree():
        for task in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(task), cores)
