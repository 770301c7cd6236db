"""Triton's perf_analyzer, for a few seconds. `make conformance-all` installs it."""

import os
import re
import subprocess
from functools import partial

from .report import Skipped
from .server import ROOT

FOLDER = ROOT / "target/perf_analyzer"
# Three windows of 300 ms, which may differ as they like: this asks whether it runs, not how fast.
OPTIONS = "-p 300 -r 3 -s 1000 --concurrency-range 2".split()
RUNS = {
    "http": "-m simple -i http",
    "http, asynchronous": "-m add -i http --async",
    "http, JSON": "-m add -i http --input-tensor-format json --output-tensor-format json",
    "http, traced": "-m add -i http --trace-level TIMESTAMPS --trace-rate 1000 --log-frequency 0",
    "grpc, not traced": "-m add -i grpc --trace-level OFF",
    "grpc": "-m simple -i grpc",
    "grpc, streaming": "-m add -i grpc --streaming",
    "grpc, compressed": "-m scale -i grpc --shape x:16,4 --grpc-compression-algorithm gzip",
    "text": "-m simple_identity -i grpc --shape INPUT0:1,2 --string-length 8",
}


def checks(url):
    for name, options in RUNS.items():
        bound = partial(run, url, options.split())
        bound.__name__ = name
        yield "perf_analyzer", bound
        if not program().exists():
            return


def program():
    return FOLDER / "perf_analyzer"


def run(url, options):
    if not program().exists():
        raise Skipped("it is not installed (make conformance-all installs it)")
    environment = os.environ | {"LD_LIBRARY_PATH": str(FOLDER)}
    run = subprocess.run(
        [program(), "-u", url, *options, *OPTIONS],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    said = run.stdout + run.stderr
    requests = re.search(r"Successful request count: (\d+)", said)
    assert run.returncode == 0 and requests and int(requests[1]) > 0, said
