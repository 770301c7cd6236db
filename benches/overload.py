"""A server asked for four times what it can answer: `make bench-overload`.

    overload.py [--models digits,imagenet] [--seconds 60] [--parts 3] [--times 4] [-- FLAG…]

The server has one core; whoever asks is on the other. For each model, part after part:

- peak: a closed loop with 16 in flight, which is as many answers as the server can give;
- overload: so many times the peak's rate, sent at random moments whatever comes back, over
  connections enough that none has to wait for another.

Beside both, a bystander asks a tiny graph fifty times a second, from a process of its own, which has
the same core as whoever floods: what it waits for that is in its times, at the peak and above. Prints

- goodput: answers (200) a second under overload, over the peak's of the same part (goal: 95 %);
- how long a refused request (503) waited for its refusal, p99 (goal: 5 ms), and what it took of the
  server's CPU: what was used under overload, less what the answers take at the peak (a trustworthy
  figure only where an answer is cheap);
- the bystander's p99 under overload over its p99 beside the peak, where the other model already
  takes all that the core has (goal: 2). Its p99 alone stands beside;
- how late the generator itself (flood.rs) sent. Where that was the limit, it says so, and the figures
  are not the server's.

Ratios are medians of the parts. Both models' times are measured from the moment of sending.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

from support import ROOT, Wisp, load_average, machine, need, percentile, two_cores, verdict
from traffic import Answers, Stream, drive, request_bytes

FLOOD = ROOT / "target/release/examples/flood"
IN_FLIGHT = 16
CONNECTIONS = 1024
TRICKLE = 50
# While the queue fills.
FILLING_S = 2
GOAL_GOODPUT, GOAL_REFUSAL_MS, GOAL_BYSTANDER = 0.95, 5, 2
GENERATOR_LATE_MS = 2
# Of its core, that the server must have been busy for at the peak.
BUSY = 0.95
# Seconds after which the server ends a connection that idles, with room to spare.
IDLE_S = 8

PHOTOS = {"digits": ("seven.png", "image/png"), "imagenet": ("cat.jpg", "image/jpeg")}


def main():
    options = read_options()
    need("taskset")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    core, _ = two_cores()
    print(f"{machine()}, {load_average()}")
    paths = [ROOT / "models" / model for model in options.models]
    # Forked now, while it is small.
    with ProcessPoolExecutor(1, get_context("fork")) as aside:
        aside.submit(int).result()
        with Wisp(*paths, ROOT / "tests/fixtures/models/scale.onnx", *options.flags, cores={core}) as server:
            server.wait_until_ready()
            for model in options.models:
                Bench(server, model, aside, options).run()


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(PHOTOS))
    parser.add_argument("--seconds", type=float, default=60, help="of overload, over all parts")
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--times", type=float, default=4)
    parser.add_argument("flags", nargs="*", metavar="FLAG")
    return parser.parse_args()


class Bench:
    def __init__(self, server, model, aside, options):
        self.server, self.model, self.aside, self.options = server, model, aside, options
        self.window = options.seconds / options.parts
        photo, kind = PHOTOS[model]
        content = (ROOT / "tests/fixtures/photos" / photo).read_bytes()
        self.request = request_bytes(server.url, f"/v2/models/{model}/infer", content, {"content-type": kind})

    def run(self):
        self.peak(2)  # warms up
        alone = percentile(self.bystander(self.window).result(), 99)
        parts = [self.part() for _ in range(self.options.parts)]
        middle = {name: statistics.median(part[name] for part in parts) for name in parts[0] if name != "unexpected"}
        unexpected = {text for part in parts for text in part["unexpected"]}
        self.tell(middle, alone)
        self.tell_of_generator(middle)
        if unexpected:
            print(f"  UNEXPECTED: {', '.join(sorted(unexpected))}")

    def tell(self, middle, alone):
        goodput, refusal, ratio = middle["goodput"], middle["refusal_p99"], middle["bystander"]
        print(
            f"\n{self.model}: peak {middle['peak']:.0f}/s; {self.options.times:g} times that "
            f"for {self.options.seconds:g} s\n"
            f"  goodput: {goodput:.1%} of the peak (goal {GOAL_GOODPUT:.0%}: {verdict(goodput >= GOAL_GOODPUT)}), "
            f"answered within {middle['answer_p50']:.0f} ms at the median\n"
            f"  refused: {middle['refused']:.0f}/s, within {middle['refusal_p50']:.2f} ms at the median, "
            f"{refusal:.2f} ms p99 (goal {GOAL_REFUSAL_MS}: {verdict(refusal <= GOAL_REFUSAL_MS)}); "
            f"each took {middle['refusal_cpu_us']:.0f} µs of CPU, an answer {middle['answer_cpu_us']:.0f}; "
            f"{middle['too_late']:.1f}/s waited until their deadline (504)\n"
            f"  bystander p99: {alone:.2f} ms alone, {middle['beside_peak']:.2f} beside the peak, "
            f"{middle['beside_overload']:.2f} under overload: {ratio:.2f} × "
            f"(goal {GOAL_BYSTANDER}: {verdict(ratio <= GOAL_BYSTANDER)})"
        )

    def tell_of_generator(self, middle):
        late, sent = middle["late_ms"], middle["sent"]
        busy = middle["busy"]
        print(f"  generator: {sent:.0%} of what was to be sent, p99 {late:.2f} ms late; the server was busy for {busy:.0%} at the peak")
        if late > GENERATOR_LATE_MS or sent < 0.99 or busy < BUSY:
            print("  THE GENERATOR WAS THE LIMIT: these figures are not the server's")

    def part(self):
        beside = self.bystander(max(self.window, 5))
        before = self.server.cpu_seconds()
        peak = self.peak(max(self.window, 5))
        used = self.server.cpu_seconds() - before
        answer_cpu = used / (peak * max(self.window, 5))
        beside_peak = beside.result()
        beside = self.bystander(self.window)
        before = self.server.cpu_seconds()
        rate = peak * self.options.times
        # Asked in turn, so that none idles for long.
        connections = max(IN_FLIGHT, min(CONNECTIONS, int(rate * IDLE_S)))
        overload = Flood(self.server.url, self.request, connections, self.window, rate)
        refusals_cpu = self.server.cpu_seconds() - before - overload.count() * answer_cpu
        beside_overload = beside.result()
        refused = overload.times_ms(503)
        good = within(overload, FILLING_S, self.window)
        return {
            "peak": peak,
            "busy": used / max(self.window, 5),
            "goodput": good / peak,
            "refused": len(refused) / self.window,
            "answer_cpu_us": answer_cpu * 1e6,
            "refusal_cpu_us": max(0, refusals_cpu) / max(1, len(refused)) * 1e6,
            "refusal_p50": percentile(refused, 50),
            "refusal_p99": percentile(refused, 99),
            "answer_p50": overload.p(50),
            "too_late": overload.count(504) / self.window,
            "beside_peak": percentile(beside_peak, 99),
            "beside_overload": percentile(beside_overload, 99),
            "bystander": percentile(beside_overload, 99) / percentile(beside_peak, 99),
            "late_ms": percentile(overload.late_ms, 99),
            "sent": len(overload.answers) / (len(overload.answers) + overload.unsent),
            "unexpected": [f"status {status or 'none'}" for status in overload.statuses().keys() - {200, 503, 504}],
        }

    def peak(self, seconds):
        """Answers a second."""
        flood = Flood(self.server.url, self.request, IN_FLIGHT, seconds)
        if set(flood.statuses()) != {200}:
            sys.exit(f"{self.model}: answers other than 200 at its peak: {flood.statuses()}")
        return within(flood, 0, seconds)

    def bystander(self, seconds):
        return self.aside.submit(trickle, self.server.url, seconds)


def trickle(url, seconds):
    """The times of a bystander's answers, ms."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    request = request_bytes(url, "/v2/models/scale/infer", json.dumps({"inputs": [tensor]}).encode())
    (stream,) = drive([Stream(url, request, 64, rate=TRICKLE)], seconds)
    if stream.lost or set(stream.statuses()) != {200}:
        raise SystemExit(f"the bystander was not answered: {stream.statuses()}, {stream.lost} lost")
    return stream.times_ms()


def within(flood, begin, end):
    """Answers (200) a second between two moments of its run."""
    moments = [at + took for at, took, status in flood.answers if status == 200]
    return sum(begin <= moment <= end for moment in moments) / (end - begin)


@dataclass
class Flood(Answers):
    """Requests of flood.rs."""

    url: str
    request: bytes
    connections: int
    seconds: float
    rate: float | None = None  # a second; None is a closed loop

    def __post_init__(self):
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(self.request)
            command = [FLOOD, urlsplit(self.url).netloc, file.name, self.connections, self.seconds]
            command += [self.rate] if self.rate else []
            printed = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
        *lines, last = printed.stdout.splitlines()
        found = [[int(part) for part in line.split()] for line in lines]
        self.answers = [(at / 1e6, took / 1e6, status) for at, _, took, status in found]
        self.late_ms = [late / 1e3 for _, late, _, _ in found]
        self.unsent = int(last.split()[1])


if __name__ == "__main__":
    main()
