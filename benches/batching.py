"""What batches make of a server's throughput: `make bench-batching`. Needs wrk.

    batching.py [--models SUBSTRING] [--in-flight 16] [--seconds 3] [--rounds 5]

Each model is deployed twice to a server on one core, with and without `[batching]`, and asked from
another over so many connections, each with one row; by turns, medians of the rounds. `rows` are those
of a run of the graph, as the model's own statistics have it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from support import ROOT, Wisp, ask, load_average, machine, need, pack, two_cores
from traffic import wrk

sys.path[:0] = [str(ROOT / "benches/engine"), str(ROOT / "tests/onnx")]
import models  # noqa: E402
from wake import request  # noqa: E402

GRAPHS = ["skl-isolation-forest", "skl-knn", "magika"]
KINDS = {"alone": "", "batched": "[batching]\nmax_batch_size = 16\nmax_queue_delay_us = 500\n"}
SENTENCE = "A man is eating a slice of pizza."


def main():
    options = read_options()
    need("wrk", "taskset")
    server_core, client_core = two_cores()
    print(f"{machine()}, {load_average()}; server on one core, {options.in_flight} in flight; times in ms")
    print(f"{'model':24}{'alone/s':>10}{'batched/s':>11}{'ratio':>8}{'p50 alone':>11}{'batched':>9}{'p99 alone':>11}{'batched':>9}{'rows':>7}")
    with tempfile.TemporaryDirectory(prefix="wisp-bench-") as scratch:
        folder = Path(scratch)
        for name, source, body, headers in asked(options.models):
            with Wisp("--state", folder / name, "--cache", folder / "cache", cores={server_core}) as server:
                deployed = {kind: deploy(server, source, folder / f"{name}-{kind}", kind) for kind in KINDS}
                ask_of = {kind: path for kind, (path, _) in deployed.items()}
                if len({engine for _, engine in deployed.values()}) > 1:
                    sys.exit(f"{name}: measured for two engines: {deployed}")
                measure(name, server, ask_of, body, headers, client_core, options)


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default="", metavar="SUBSTRING")
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=3, help="of a window")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def asked(substring):
    """Name, bundle or graph, body and headers."""
    if substring in "minilm":
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [SENTENCE]}
        body = json.dumps({"inputs": [tensor]}).encode()
        yield "minilm", ROOT / "models/minilm", body, {"content-type": "application/json"}
    for entry in models.entries():
        if entry.name in GRAPHS and substring in entry.name:
            path = entry.prepare()
            body, length = request(path, entry.inputs_folder)
            yield entry.name, path, body, {"inference-header-content-length": str(length)}


def deploy(server, source, bundle, kind):
    """The path to ask, and the engine that was measured to be the fastest."""
    if source.is_dir():
        shutil.copytree(source, bundle)
    else:
        bundle.mkdir()
        shutil.copy(source, bundle / "model.onnx")
        (bundle / "wisp.toml").write_text('[graphs]\nmodel = "model.onnx"\n')
    manifest = bundle / "wisp.toml"
    manifest.write_text(f"{manifest.read_text()}{KINDS[kind]}")
    status, report = server.try_to_deploy(pack(bundle, bundle.with_suffix(".wisp")), f"name={kind}&activate=true")
    if status >= 300:
        sys.exit(f"{bundle.name}: {status} {report}")
    (graph,) = json.loads(report)["report"]["graphs"]
    if kind == "batched":
        print(f"  {graph['engine']['batches']['reason']}")
    return f"/v2/models/{kind}/infer", graph["engine"]["engine"]


def measure(name, server, ask_of, body, headers, core, options):
    reports = {kind: [] for kind in ask_of}
    for kind, path in ask_of.items():
        status, answer = ask(server.url, path, body, headers)
        if status != 200:
            sys.exit(f"{name}: {status} {answer}")
        wrk(server.url, path, body, headers, options.in_flight, 1, core)  # warms up
    for turn in range(options.rounds):
        for kind in sorted(ask_of, reverse=turn % 2 == 1):
            report = wrk(server.url, ask_of[kind], body, headers, options.in_flight, options.seconds, core)
            if report.errors:
                sys.exit(f"{name}: {report.errors} requests failed")
            reports[kind].append(report)
    middle = lambda kind, value: statistics.median(value(report) for report in reports[kind])
    rates = [middle(kind, lambda report: report.rate) for kind in KINDS]
    p50s = [middle(kind, lambda report: report.p50) for kind in KINDS]
    p99s = [middle(kind, lambda report: report.p99) for kind in KINDS]
    (counts,) = json.loads(ask(server.url, "/v2/models/batched/stats")[1])["model_stats"]
    rows = counts["inference_count"] / counts["execution_count"]
    times = "".join(f"{alone:>11.2f}{batched:>9.2f}" for alone, batched in (p50s, p99s))
    print(f"{name:24}{rates[0]:>10,.0f}{rates[1]:>11,.0f}{rates[1] / rates[0]:>8.2f}{times}{rows:>7.1f}", flush=True)


if __name__ == "__main__":
    main()
