"""What waking a cold model takes: `make bench-wake`.

    wake.py [--models SUBSTRING] [--rounds 7]

The bundles of models/ and the ONNX files that engines are measured on are deployed into a state
folder. For each, servers are started anew, all their models cold, in turn for

- wake: a first request comes, and waits for the model to be loaded;
- load, then first: the model is loaded as its operator would (`/v2/repository/models/M/load`), and
  then the same request comes.

Time is from a request's first byte to its answer's last, CPU the server process's, both in ms and
medians. `wake/load` is wake over load plus first, in CPU: 1 is a wake that adds nothing to loading.
`engine` is the CPU of the engine's own load from the file and first run of the graph in a process
without Wasm or HTTP, and `wake/engine` wake over that. A warm request stands beside. Goals: 20 ms of
CPU for EfficientNet-Lite0, 60 for MiniLM, and less than the engine's own load where that stands here.
Where a graph has no compiled plan, a wake is that load and a request more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import numpy_helper

from support import ROOT, Wisp, ask, load_average, machine, pack, verdict

sys.path[:0] = [str(ROOT / "benches/engine"), str(ROOT / "tests/onnx")]
import models  # noqa: E402
from probe import Probe  # noqa: E402

# CPU of a wake, ms.
GOALS = {"imagenet": 20, "onnx-efficientnet-lite0": 20, "minilm": 60}
# Of a server that has answered: what it still does is its wake's.
SETTLE_S = 0.1
LIMIT_S = 120.0


@dataclass(frozen=True)
class Model:
    name: str
    source: Path
    graph: Path
    body: bytes
    headers: dict
    inputs: Path | None = None  # for the engine alone

    @property
    def path(self):
        return f"/v2/models/{self.name}/infer"


@dataclass(frozen=True)
class Measured:
    model: str
    cpu: float  # of its wake, ms
    engine: float | None  # of the engine's own load and first run
    over_load: float


def main():
    options = read_options()
    found = [model for model in [*bundles(), *graphs(options.models)] if options.models in model.name]
    print(f"{machine()}, {load_average()}; medians of {options.rounds} rounds, ms")
    columns = ["wake", "CPU", "load", "CPU", "first", "CPU", "warm", "wake/load", "engine", "wake/engine"]
    print(line("model", *columns))
    with tempfile.TemporaryDirectory(prefix="wisp-bench-") as scratch:
        folder = Path(scratch)
        deployed = [(model, deploy(model, folder)) for model in found]
        wakes = [measure(model, engine, folder, options.rounds) for model, engine in deployed if engine]
    if not wakes:
        return
    ratios = [wake.over_load for wake in wakes]
    print(f"wake/load: median {statistics.median(ratios):.2f}, worst {max(ratios):.2f}")
    compared = [wake for wake in wakes if wake.engine]
    below = [wake.model for wake in compared if wake.cpu < wake.engine]
    print(f"below the engine's own load: {len(below)} of {len(compared)}: {', '.join(below) or 'none'}")
    for wake in wakes:
        if goal := GOALS.get(wake.model):
            is_below = wake.engine is None or wake.cpu < wake.engine
            print(f"{wake.model}: {wake.cpu:.1f} ms (goal {goal}, and below its engine's load: {verdict(wake.cpu <= goal and is_below)})")


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default="", metavar="SUBSTRING")
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def bundles():
    """As their users ask them."""
    sentence = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["A cat on a mat."]}
    for name, graph, file, kind in [
        ("digits", "digits.onnx", "seven.png", "image/png"),
        ("imagenet", "efficientnet-lite0.onnx", "cat.jpg", "image/jpeg"),
        ("minilm", "all-minilm-l6-v2.onnx", None, "application/json"),
    ]:
        folder = ROOT / "models" / name
        body = json.dumps({"inputs": [sentence]}).encode()
        if file:
            body = (ROOT / "tests/fixtures/photos" / file).read_bytes()
        yield Model(name, folder, folder / graph, body, {"content-type": kind})


def graphs(substring):
    """Bare graphs, their tensors as bytes behind the JSON."""
    for entry in models.entries():
        if substring in entry.name:
            path = entry.prepare()
            body, length = request(path, entry.inputs_folder)
            headers = {"inference-header-content-length": str(length)}
            yield Model(f"onnx-{entry.name}", path, path, body, headers, entry.inputs_folder)


def request(path, folder):
    graph = onnx.load(path, load_external_data=False).graph
    constants = {constant.name for constant in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constants]
    inputs, tail = [], b""
    for index, name in enumerate(names):
        array = numpy_helper.to_array(onnx.load_tensor(folder / f"{index}.pb"))
        tensor = {"name": name, "datatype": datatype(array), "shape": list(array.shape)}
        if array.dtype.kind in "OSU":
            text = lambda value: value.decode() if isinstance(value, bytes) else str(value)
            tensor["data"] = [text(value) for value in array.flatten()]
        else:
            content = array.tobytes()
            tensor["parameters"] = {"binary_data_size": len(content)}
            tail += content
        inputs.append(tensor)
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + tail, len(head)


def datatype(array):
    kinds = {"f": "FP", "i": "INT", "u": "UINT"}
    kind = array.dtype.kind
    return "BOOL" if kind == "b" else f"{kinds[kind]}{array.dtype.itemsize * 8}" if kind in kinds else "BYTES"


def serve(folder, *more):
    return Wisp("--state", folder / "state", "--cache", folder / "cache", *more)


def deploy(model, folder):
    """The engine that serves it; None where it is refused."""
    archive = pack(model.source, folder / "model.wisp")
    with serve(folder) as server:
        status, report = server.try_to_deploy(archive, f"name={model.name}&activate=true")
        body = report
        if status < 300:
            status, body = ask(server.url, model.path, model.body, model.headers)
    if status >= 300:
        print(f"{model.name:28} left out: {json.loads(body)['error']:.120}")
        return None
    (graph,) = json.loads(report)["report"]["graphs"]
    return graph["engine"]["engine"]


def measure(model, engine, folder, rounds):
    wakes, loads, firsts, warm = [], [], [], []
    for _ in range(rounds):
        with serve(folder) as server:
            wakes.append(infer(server, model))
        with serve(folder, "--client-control", "true") as server:
            loads.append(spent(server, f"/v2/repository/models/{model.name}/load", b"", {}))
            firsts.append(infer(server, model))
            warm.append(infer(server, model))
    middle = lambda column: [statistics.median(values) for values in zip(*column)]
    (wake, wake_cpu), (load, load_cpu), (first, first_cpu) = middle(wakes), middle(loads), middle(firsts)
    alone = engine_ms(model, engine, rounds)
    measured = Measured(model.name, wake_cpu, alone, wake_cpu / (load_cpu + first_cpu))
    cells = [wake, wake_cpu, load, load_cpu, first, first_cpu, middle(warm)[0]]
    beside = [f"{alone:.1f}", f"{wake_cpu / alone:.2f}"] if alone else ["", ""]
    print(line(model.name, *(f"{cell:.1f}" for cell in cells), f"{measured.over_load:.2f}", *beside), flush=True)
    return measured


def infer(server, model):
    return spent(server, model.path, model.body, model.headers)


def spent(server, path, body, headers):
    """Milliseconds that passed, and of CPU."""
    ask(server.url, "/v2/health/live")
    cpu, begun = server.cpu_seconds(), time.perf_counter()
    status, answer = ask(server.url, path, body, headers)
    took = time.perf_counter() - begun
    if status != 200:
        sys.exit(f"{path}: {status} {answer.decode()}")
    time.sleep(SETTLE_S)
    return took * 1e3, (server.cpu_seconds() - cpu) * 1e3


def engine_ms(model, engine, rounds):
    """None where a guest makes the graph's tensors."""
    if model.inputs is None:
        return None
    probe = Probe(engine, LIMIT_S)
    times = []
    for _ in range(rounds):
        loaded = probe.load(model.graph)
        times.append((loaded["cpu_us"] + probe.run(loaded["loaded"], model.inputs)["cpu_us"][0]) / 1e3)
        probe.end()
    return statistics.median(times)


def line(name, *cells):
    return f"{name:28}" + "".join(f"{cell:>12}" for cell in cells)


if __name__ == "__main__":
    main()
