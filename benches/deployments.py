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
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
WISP = ROOT / "target/release/wisp"
MODELS, VERSIONS = 10, 100


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        server, url, admin, _ = start(folder)
        took = []
        for number in range(MODELS * VERSIONS):
            archive = pack(folder, number)
            begun = time.perf_counter()
            request = urllib.request.Request(
                f"{admin}/admin/v1/bundles?activate=true", data=archive, method="PUT"
            )
            answer = json.load(urllib.request.urlopen(request))
            took.append((time.perf_counter() - begun) * 1000)
            assert not answer["unchanged"]
            if sys.stderr.isatty() and number % 50 == 0:
                print(f"\r{number} deployed", end="", file=sys.stderr)
        for first in (0, 100, 500, 900):
            part = took[first : first + 100]
            print(f"deployments {first + 1} to {first + 100}: median {statistics.median(part):.1f} ms")
        environment = os.environ | {"WISP_ADMIN": admin}
        print(f"wisp list: {median(lambda: run([WISP, 'list'], environment)):.0f} ms")
        stop(server)

        listening, answered = [], []
        for _ in range(5):
            begun = time.perf_counter()
            server, url, admin, listens = start(folder)
            infer(url)
            answered.append((time.perf_counter() - begun) * 1000)
            listening.append(listens)
            stop(server)
        print(f"start to listening: {statistics.median(listening):.0f} ms")
        print(f"start to the first answer of one of its models: {statistics.median(answered):.0f} ms")


def pack(folder, number):
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
    run([WISP, "pack", source, "-o", folder / "add.wisp"])
    return (folder / "add.wisp").read_bytes()


def request(number):
    values = {"datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    return {"id": str(number), "inputs": [{"name": name} | values for name in ("a", "b")]}


def start(folder):
    command = [WISP, "serve", "--state", folder / "state", "--cache", folder / "cache"]
    command += ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log", "warn"]
    begun = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    url = server.stdout.readline().split()[-1]
    listens = (time.perf_counter() - begun) * 1000
    return server, url, server.stdout.readline().split()[-1], listens


def infer(url):
    body = json.dumps(request(0)).encode()
    answer = json.load(urllib.request.urlopen(f"{url}/v2/models/add3/infer", data=body))
    assert answer["outputs"][0]["data"] == [2, 4, 6, 8]


def median(work):
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        work()
        took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)


def run(command, environment=None):
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def stop(server):
    server.terminate()
    server.wait()


if __name__ == "__main__":
    main()
