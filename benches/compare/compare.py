"""wisp beside what a user would pick instead: `make compare`. Needs wrk.

    compare.py [--workloads tabular,digits] [--seconds 4] [--rounds 3] [--no-write]

FastAPI with ONNX Runtime (uvicorn, one worker) and MLServer (its defaults: one inference worker)
serve the same four models. All must first give the same answer. Then all of a workload's servers
are up at once and asked one after the other, round by round, so that a busy machine slows each; a
figure is the median of the rounds. Each server is held to one core and asked from another. As
ONNX Runtime's own threads leave the core that they were given, they are put back on it; and as
two of them on one core spin for each other, FastAPI is measured with one, too. MLServer has one.
"Both cores" frees the servers, MLServer with its default threads, one request in flight.

CPU time, RSS and PSS are the whole process tree's. Where thousands of requests a second come
back (tabular), wrk asks; else a client that waits for every answer, so that none is left out.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from contenders import WORKLOADS, OfFastApi, OfMlServer, OfWisp, hold
from support import load_average, machine, need, two_cores
from traffic import closed, wrk

HELD = [OfWisp("wisp"), OfFastApi("FastAPI"), OfFastApi("FastAPI, 1 thread", 1), OfMlServer("MLServer", 1)]
FREE = [OfWisp("wisp"), OfFastApi("FastAPI"), OfFastApi("FastAPI, 1 thread", 1), OfMlServer("MLServer")]
IN_FLIGHT = (1, 16, 64)
COLUMNS = [
    ("CPU µs a request", "cpu_us", ",.0f"),
    ("requests/s", "peak", ",.0f"),
    ("p50 ms, 1", "p50_1", ".2f"),
    ("p99 ms, 1", "p99_1", ".2f"),
    ("p50 ms, 16", "p50_16", ".1f"),
    ("p99 ms, 16", "p99_16", ".1f"),
    ("both cores: p50 ms, 1", "free_p50_1", ".2f"),
    ("RSS MiB, first answer", "rss_idle", ".0f"),
    ("RSS MiB, loaded", "rss", ".0f"),
    ("PSS MiB, loaded", "pss", ".0f"),
    ("start ms", "start", ",.0f"),
]


def main():
    options = read_options()
    need("wrk", "taskset")
    every = os.sched_getaffinity(0)
    server_core, client_core = two_cores()
    begun = load_average()
    tables = {}
    for workload in WORKLOADS:
        if options.workloads and workload.name not in options.workloads:
            continue
        bench = Bench(workload, options, client_core)
        rows = bench.held({server_core})
        for name, p50 in bench.free(every).items():
            rows[name]["free_p50_1"] = p50
        tables[workload.name] = rows
        print("\n".join(table(workload.name, rows)), "\n", flush=True)
    if options.write and len(tables) == len(WORKLOADS):
        text = markdown(tables, options, f"{begun} at its start, {load_average()} at its end")
        (Path(__file__).parent / "RESULTS.md").write_text(text)


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--workloads", type=lambda text: text.split(","), default=[])
    parser.add_argument("--seconds", type=int, default=4, help="of a window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-write", dest="write", action="store_false")
    return parser.parse_args()


class Bench:
    """One workload."""

    def __init__(self, workload, options, client_core):
        self.workload, self.options, self.core = workload, options, client_core

    def held(self, cores):
        """The row of each server that has one core."""
        with ExitStack() as stack:
            servers, starts = self.start(HELD, cores, stack)
            rows = {name: {"start": starts[name], "rss_idle": server.resident_mib()} for name, server in servers.items()}
            windows = self.rounds(HELD, servers, IN_FLIGHT, cores)
            for name, row in rows.items():
                row |= middle(windows[name]) | {"rss": servers[name].resident_mib(), "pss": servers[name].proportional_mib()}
        return rows

    def free(self, cores):
        with ExitStack() as stack:
            servers, _ = self.start(FREE, cores, stack, times=1)
            windows = self.rounds(FREE, servers, (1,), cores)
        return {name: middle(found)["p50_1"] for name, found in windows.items()}

    def start(self, contenders, cores, stack, times=None):
        """The last of some starts of each stays; how long they took, the median."""
        times = times or self.options.rounds
        took = {contender.name: [] for contender in contenders}
        servers = {}
        for last in [False] * (times - 1) + [True]:
            for contender in contenders:
                server = contender.start(self.workload, cores)
                took[contender.name].append(server.answered_ms)
                if last:
                    servers[contender.name] = stack.enter_context(server)
                    hold(server, cores)
                else:
                    server.stop()
        self.check(contenders, servers)
        return servers, {name: statistics.median(ms) for name, ms in took.items()}

    def check(self, contenders, servers):
        first, *rest = [contender.answer(servers[contender.name], self.workload) for contender in contenders]
        for contender, answer in zip(contenders[1:], rest):
            if not agree(first, answer):
                sys.exit(f"{self.workload.name}: {contender.name} answers {answer}, wisp {first}")

    def rounds(self, contenders, servers, in_flight, cores):
        """What each window saw, by server and requests in flight; the first round warms up."""
        windows = {contender.name: {count: [] for count in in_flight} for contender in contenders}
        for number in range(self.options.rounds + 1):
            for count in in_flight:
                for contender in contenders:
                    server = servers[contender.name]
                    hold(server, cores)
                    seen = self.window(contender, server, count, 1 if number == 0 else self.options.seconds)
                    if number:
                        windows[contender.name][count].append(seen)
        return windows

    def window(self, contender, server, in_flight, seconds):
        request = contender.request(self.workload)
        asked = (server.url, request.path, request.body, request.headers, in_flight, seconds)
        before = server.cpu_seconds()
        if self.workload.is_quick:
            report = wrk(*asked, self.core)
            requests, errors, p50, p99, rate = report.requests, report.errors, report.p50, report.p99, report.rate
        else:
            stream = closed(*asked)
            requests, p50, p99 = stream.count(), stream.p(50), stream.p(99)
            errors, rate = stream.lost + len(stream.answers) - requests, requests / stream.seconds
        if errors or not requests:
            sys.exit(f"{self.workload.name}: {contender.name} left {errors} requests without an answer")
        cpu_us = (server.cpu_seconds() - before) / requests * 1e6
        return {"cpu_us": cpu_us, "p50": p50, "p99": p99, "rate": rate}


def middle(windows):
    """Medians over the rounds; the rate is the best number in flight's."""
    median = lambda count, what: statistics.median(window[what] for window in windows[count])
    row = {f"{what}_{count}": median(count, what) for count in windows for what in ("p50", "p99")}
    row["peak"] = max(median(count, "rate") for count in windows)
    return row | {"cpu_us": median(16 if 16 in windows else 1, "cpu_us")}


def agree(one, other):
    if one.label != other.label or len(one.numbers) != len(other.numbers):
        return False
    if one.label:
        return all(abs(a - b) < 0.02 for a, b in zip(one.numbers, other.numbers))
    return cosine(one.numbers, other.numbers) > 0.999


def cosine(one, other):
    dot = sum(a * b for a, b in zip(one, other))
    return dot / math.hypot(*one) / math.hypot(*other)


def table(title, rows):
    lines = [f"| {title} | " + " | ".join(rows) + " |", "|---" + "|--:" * len(rows) + "|"]
    for label, key, form in COLUMNS:
        cells = [format(row[key], form) if key in row else "" for row in rows.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def markdown(tables, options, load):
    lines = [
        "# wisp beside FastAPI and MLServer",
        "",
        f"`make compare` on {datetime.date.today().isoformat()}: {machine()}, {load}; windows of "
        f"{options.seconds} s, medians of {options.rounds} rounds in alternation.",
        "",
        *(f"- {contender.version()}" for contender in (HELD[0], HELD[1], HELD[3])),
        "",
        "Every server is held to one core, its clients to the other. CPU time is the whole process tree's,",
        "with 16 requests in flight; requests/s are the best of 1, 16 and 64 in flight. `FastAPI` has ONNX",
        "Runtime's default of a thread for each core of the machine, which spin for each other on one;",
        "`1 thread` is what its user would set there, and what MLServer has. `Both cores` frees all, and",
        "MLServer has the default: one photo or sentence then runs on two cores in ONNX Runtime where it",
        "has two threads; in wisp a photo does, as models/imagenet asks for it, and a sentence on one.",
        "`Start` is from the process's start to its first answer. compare.py says how it is measured.",
    ]
    for name, rows in tables.items():
        lines += ["", *table(name, rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
