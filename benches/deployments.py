"""What a thousand deployed versions cost: `make bench-deployments`.

Deploys 1,000 versions of a small bundle (each its own digest, ten models of a hundred versions),
then restarts. Prints the time of the first and the last deployments, of `wisp list`, and from
the start to listening and to the first answer.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import ROOT, WISP, Wisp, ask, pack

MODELS, VERSIONS = 10, 100


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        took = []
        with start(folder) as server:
            for number in range(MODELS * VERSIONS):
                archive = packed(folder, number)
                begun = time.perf_counter()
                answer = server.deploy(archive)
                took.append((time.perf_counter() - begun) * 1000)
                assert not answer["unchanged"]
                if sys.stderr.isatty() and number % 50 == 0:
                    print(f"\r{number} deployed", end="", file=sys.stderr)
            for first in (0, 100, 500, 900):
                part = took[first : first + 100]
                print(f"deployments {first + 1} to {first + 100}: median {statistics.median(part):.1f} ms")
            environment = os.environ | {"WISP_ADMIN": server.admin}
            print(f"wisp list: {median(lambda: run([WISP, 'list'], environment)):.0f} ms")

        listening, answered = [], []
        for _ in range(5):
            with start(folder) as server:
                infer(server.url)
                answered.append((time.perf_counter() - server.started) * 1000)
                listening.append(server.listening_ms)
        print(f"start to listening: {statistics.median(listening):.0f} ms")
        print(f"start to the first answer of one of its models: {statistics.median(answered):.0f} ms")


def packed(folder, number):
    source = folder / "source"
    source.mkdir(exist_ok=True)
    (source / "add.onnx").write_bytes((ROOT / "tests/fixtures/models/add.onnx").read_bytes())
    # Another digest each time, and the same compiled guest: what is measured is the store.
    (source / "one.json").write_text(json.dumps(request(number)))
    (source / "two.json").write_text(
        '{"outputs":[{"name":"sum","datatype":"FP32","shape":[1,4],"data":[2,4,6,8]}]}'
    )
    (source / "wisp.toml").write_text(
        f'name = "add{number % MODELS}"\n[graphs]\nmodel = "add.onnx"\n'
        '[[tests]]\ninput = "one.json"\nexpect = "two.json"\n'
    )
    return pack(source, folder / "add.wisp")


def request(number):
    values = {"datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    return {"id": str(number), "inputs": [{"name": name} | values for name in ("a", "b")]}


def start(folder):
    return Wisp("--state", folder / "state", "--cache", folder / "cache", log="warn")


def infer(url):
    status, answer = ask(url, "/v2/models/add3/infer", json.dumps(request(0)).encode())
    assert status == 200 and json.loads(answer)["outputs"][0]["data"] == [2, 4, 6, 8]


def median(work):
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        work()
        took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)


def run(command, environment=None):
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
