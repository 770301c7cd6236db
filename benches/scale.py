"""What a thousand deployed models cost the twenty that are asked: `make bench-scale`.

    scale.py [--models 1000] [--seconds 8] [--rounds 5] [-- FLAG…]

Two state folders: one with twenty hot models, one with those and 980 others, small and real mixed:
of fifty, one is MiniLM, one EfficientNet, eight digits, the rest tiny graphs. Both servers are
started anew, on the same core, and the hot models of one after the other get the same open traffic,
round by round. Prints

- resident memory as deployed, after the start, and with the hot models loaded (goal: 1 GiB);
- what an idle model adds to the resident memory after the start (goal: its index entry, 16 KiB);
- the p99 of each kind of hot model, and its ratio to the same with twenty deployed, median of the
  rounds (goal: 1.1). Kinds with few requests show their p50, without a goal.

FLAGs are `wisp serve`'s, for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from support import ROOT, Wisp, ask, load_average, machine, need, pack, percentile, two_cores, verdict
from traffic import Stream, drive, request_bytes

GOAL_RESIDENT_MIB = 1024
GOAL_IDLE_KIB = 16
GOAL_RATIO = 1.1
# A p99 of fewer is one request's luck.
ENOUGH = 500


@dataclass(frozen=True)
class Kind:
    name: str
    source: str
    hot: int  # of the twenty
    share: int  # of fifty of the others
    rate: float  # requests a second of one hot model
    body: bytes
    content_type: str = "application/json"


def kinds():
    four = lambda name: {"name": name, "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    asked = lambda *inputs: json.dumps({"inputs": inputs}).encode()
    text = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["A cat on a mat."]}
    photo = lambda name: (ROOT / "tests/fixtures/photos" / name).read_bytes()
    return [
        Kind("scale", "tests/fixtures/models/scale.onnx", 7, 20, 40, asked(four("x"))),
        Kind("add", "tests/fixtures/models/add.onnx", 7, 20, 40, asked(four("a"), four("b"))),
        Kind("digits", "models/digits", 4, 8, 30, photo("seven.png"), "image/png"),
        Kind("imagenet", "models/imagenet", 1, 1, 2, photo("cat.jpg"), "image/jpeg"),
        Kind("minilm", "models/minilm", 1, 1, 4, asked(text)),
    ]


def main():
    options = read_options()
    need("taskset")
    every = kinds()
    core, _ = two_cores()
    print(f"{machine()}, {load_average()}")
    with tempfile.TemporaryDirectory(prefix="wisp-bench-") as scratch:
        folder = Path(scratch)
        archives = {kind.name: pack(ROOT / kind.source, folder / f"{kind.name}.wisp") for kind in every}
        hot = [(kind, f"hot-{kind.name}-{number}") for kind in every for number in range(kind.hot)]
        counts = {20: hot, options.models: hot + others(every, options.models - len(hot))}
        for count, models in counts.items():
            deploy(folder, count, models, archives, options.flags)
        servers = {}
        try:
            for count in counts:
                servers[count] = serve(folder, count, options.flags, {core})
            measure(servers, hot, options)
        finally:
            for server in servers.values():
                server.stop()


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=8, help="of a window")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("flags", nargs="*", metavar="FLAG")
    return parser.parse_args()


def others(every, count):
    turn = [kind for kind in every for _ in range(kind.share)]
    return [(turn[number * 7 % len(turn)], f"idle-{number}") for number in range(count)]


def serve(folder, count, flags, cores=None):
    return Wisp("--state", folder / f"state-{count}", "--cache", folder / "cache", *flags, cores=cores)


def deploy(folder, count, models, archives, flags):
    begun = time.monotonic()
    with serve(folder, count, flags) as server:
        for number, (kind, name) in enumerate(models):
            server.deploy(archives[kind.name], f"name={name}&activate=true")
            if sys.stderr.isatty():
                print(f"\r{number + 1} of {count} deployed", end="", file=sys.stderr)
        took, resident = time.monotonic() - begun, server.resident_mib()
    mixed = ", ".join(f"{many} {name}" for name, many in Counter(kind.name for kind, _ in models).items())
    print(f"{count} models ({mixed}) deployed in {took:.0f} s; then {resident:,.0f} MiB resident", flush=True)


def measure(servers, hot, options):
    time.sleep(1)
    few, many = servers
    started = {count: server.resident_mib() for count, server in servers.items()}
    for server in servers.values():
        for kind, name in hot:
            wake(server, kind, name)
    windows = {count: [] for count in servers}
    for number in range(options.rounds + 1):  # the first warms up
        for count, server in servers.items():
            seen = window(server, hot, options.seconds)
            if number:
                windows[count].append(seen)
    loaded = {count: server.resident_mib() for count, server in servers.items()}
    idle_kib = (started[many] - started[few]) * 1024 / (many - few)
    told = lambda found: f"{found[few]:.1f} MiB with {few}, {found[many]:.1f} MiB with {many} deployed"
    print(f"resident after the start: {told(started)}")
    print(f"an idle model: {idle_kib:.1f} KiB (goal {GOAL_IDLE_KIB}: {verdict(idle_kib <= GOAL_IDLE_KIB)})")
    is_met = loaded[many] <= GOAL_RESIDENT_MIB
    print(f"resident with {len(hot)} hot: {told(loaded)} (goal {GOAL_RESIDENT_MIB}: {verdict(is_met)})")
    for kind in windows[few][0]:
        compare(kind, windows[few], windows[many], few, many)


def wake(server, kind, name):
    status, body = ask(server.url, f"/v2/models/{name}/infer", kind.body, {"content-type": kind.content_type})
    if status != 200:
        sys.exit(f"{name}: {status} {body.decode()}")


def window(server, hot, seconds):
    """The times of each kind's answers, ms."""
    streams = []
    for kind, name in hot:
        path, headers = f"/v2/models/{name}/infer", {"content-type": kind.content_type}
        request = request_bytes(server.url, path, kind.body, headers)
        streams.append((kind.name, Stream(server.url, request, 8, rate=kind.rate)))
    drive([stream for _, stream in streams], seconds)
    seen = {}
    for kind, stream in streams:
        if stream.lost or set(stream.statuses()) != {200}:
            sys.exit(f"{kind}: not every request was answered: {stream.statuses()}, {stream.lost} lost")
        seen.setdefault(kind, []).extend(stream.times_ms())
    return seen


def compare(kind, few_windows, many_windows, few, many):
    is_enough = min(len(window[kind]) for window in few_windows + many_windows) >= ENOUGH
    percent = 99 if is_enough else 50
    with_few, with_many = (
        [percentile(window[kind], percent) for window in windows] for windows in (few_windows, many_windows)
    )
    ratio = statistics.median(b / a for a, b in zip(with_few, with_many))
    goal = f" (goal {GOAL_RATIO}: {verdict(ratio <= GOAL_RATIO)})" if is_enough else ""
    a, b = statistics.median(with_few), statistics.median(with_many)
    print(f"{kind}: p{percent} {a:.2f} ms with {few}, {b:.2f} ms with {many}: {ratio:.2f} ×{goal}")


if __name__ == "__main__":
    main()
