"""What a hostile guest costs its neighbour: `make bench-hostile`. Needs wrk.

    hostile.py [--cases loop,panic] [--bystander scale] [--seconds 2] [--rounds 5] [--in-flight 1] [-- FLAG…]

One server, on all cores. A bystander asks a model of its own, one request after the other (wrk),
in windows by turns: alone; while somebody sends one kind of hostile request to the same server in a
loop; and while somebody sends them to another server, a process of its own. The first figure is the
bystander's p99 beside the attack over its p99 alone, the median of the rounds (goal: 1.1). On few
cores most of that is the machine's: attacker, bystander and server want the same cores. What the
attack costs that neighbours in processes of their own would not suffer is the last figure, beside it
over apart from it. `behave` and `slow` are no attacks but what a good guest costs by computing. It is
also asked that the bystander is answered rightly, that each attack ends as it should, and that no
sandbox is left over.

CASES is the list; a line more is an attack more.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from support import PATIENCE_S, ROOT, Wisp, ask, load_average, machine, need, pack, verdict, wait_for
from traffic import wrk

GOAL = 1.1
DEADLINE_MS = 300
# Before a window, for the attack to be under way.
UNDER_WAY_S = 0.2


@dataclass(frozen=True)
class Case:
    """Requests of one kind, with the statuses that each may have."""

    name: str
    statuses: tuple[int, ...]
    path: str
    body: bytes
    method: str = "POST"
    content_type: str = "text/plain"


def order(name, *statuses):
    """What the guest tests/guests/hostile does when it is told so."""
    return Case(name, statuses, "/v2/models/hostile/infer", name.encode())


def deployment(name, archive):
    """A bundle that must be refused."""
    return Case(f"deploy {name}", (422,), "/admin/v1/bundles", archive, "PUT", "application/octet-stream")


ORDERS = [
    order("behave", 200),
    order("slow", 200, 504),  # as the machine is
    order("loop", 504),
    order("copy", 504),
    order("fill", 504),
    order("print-for-ever", 504),
    order("wasi-sleep", 504),
    order("write-and-loop", 504),
    order("panic", 500),
    order("recurse", 500),
    order("grow", 500),
    order("tensors", 500),
    order("dimensions", 500),
    order("aliased", 500),
    order("errors", 500),
    order("handles tensors", 500),
    order("handles contexts", 500),
    order("huge-output", 500),
    order("long-text", 500),
    order("print", 200),
    order("fail", 500),
    order("wrong-datatype", 500),
    order("write", 200),
    order("write-and-panic", 500),
    order("scan", 200),
    order("other-graph", 500),
    order("wasi-print", 200),
]

def request(name, statuses, model, body, content_type="application/json"):
    return Case(name, statuses, f"/v2/models/{model}/infer", body, content_type=content_type)


REQUESTS = [
    request("long graph", (200, 504), "matmul_slow", b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[3]}]}'),
    request("broken photo", (400,), "digits", b"\x89PNG\r\n\x1a\n" + b"x" * 100_000, "image/png"),
    request("broken JSON", (400,), "scale", b'{"inputs":[' + b"[" * 100_000),
    request("wrong shape", (400,), "scale", b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,9],"data":[1]}]}'),
    request("unknown model", (404,), "nobody", b"{}"),
]


def main():
    options = read_options()
    need("wrk", "taskset")
    print(f"{machine()}, {load_average()}; bystander `{options.bystander}`, {options.in_flight} attacks in flight")
    print(f"{'p99 in ms':20}{'alone':>8}{'beside':>8}{'apart':>8}{'beside/alone':>14}{'apart/alone':>13}{'beside/apart':>14}{'attacks/s':>11}")
    with tempfile.TemporaryDirectory(prefix="wisp-bench-") as scratch:
        folder = Path(scratch)
        cases = [*ORDERS, *REQUESTS, *deployments(folder)]
        limits = ["--deadline-ms", 2000, "--examine-seconds", 5]
        places = lambda name: ["--state", folder / name, "--cache", folder / "cache"]
        models = [hostile(folder, "hostile", f"[limits]\nmemory_mib = 64\ndeadline_ms = {DEADLINE_MS}\n")]
        models += [ROOT / "models/digits"]
        models += [ROOT / f"tests/fixtures/models/{name}.onnx" for name in ("scale", "matmul_slow")]
        serve = lambda name: Wisp(*models, *places(name), *limits, *options.flags)
        with serve("state") as server, serve("other-state") as other:
            server.wait_until_ready()
            other.wait_until_ready()
            chosen = [case for case in cases if not options.cases or case.name in options.cases]
            ratios = [Bench(server, other, case, options).run() for case in chosen]
    for name, column in zip(("alone", "apart"), zip(*ratios)):
        middle, worst = statistics.median(column), max(column)
        print(f"beside/{name}: median {middle:.2f}, worst {worst:.2f} (goal {GOAL}: {verdict(worst <= GOAL)})")


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=lambda text: text.split(","), default=[])
    parser.add_argument("--bystander", choices=["scale", "digits"], default="scale")
    parser.add_argument("--seconds", type=int, default=2, help="of a window")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("flags", nargs="*", metavar="FLAG")
    return parser.parse_args()


def hostile(folder, name, more):
    bundle = folder / name
    bundle.mkdir()
    shutil.copy(ROOT / "target/guests/hostile.wasm", bundle / "guest.wasm")
    (bundle / "wisp.toml").write_text(f'component = "guest.wasm"\n{more}')
    return bundle


def deployments(folder):
    archive = lambda bundle: pack(bundle, folder / "bundle.wisp")
    for deed in ("loop", "grow", "panic"):
        bundle = hostile(folder, f"prepare-{deed}", f'[settings]\nprepare = "{deed}"\n')
        yield deployment(f"prepare-{deed}", archive(bundle))
    for graph in ("circle", "doubled", "terabytes", "endless", "elsewhere"):
        yield deployment(graph, archive(ROOT / f"tests/fixtures/hostile/{graph}.onnx"))
    yield deployment("no bundle", b"x" * 1_000_000)


class Bench:
    """One case."""

    def __init__(self, server, other, case, options):
        self.server, self.other, self.case, self.options = server, other, case, options
        self.bystander = bystander(options.bystander)

    def run(self):
        self.window(1)  # warms up
        p99s, sent = {"alone": [], "beside": [], "apart": []}, 0
        for turn in range(self.options.rounds):
            for kind in rotated(list(p99s), turn):
                if kind == "alone":
                    p99s[kind].append(self.window(self.options.seconds))
                    continue
                attacked = self.server if kind == "beside" else self.other
                with attack(attacked, self.case, self.options.in_flight) as attackers:
                    time.sleep(UNDER_WAY_S)
                    p99s[kind].append(self.window(self.options.seconds))
                if kind == "beside":
                    sent += sum(attacker.sent for attacker in attackers)
        for server in (self.server, self.other):
            wait_for(lambda: server.live_sandboxes() == 0)
        ratio = lambda what, to: statistics.median(a / b for a, b in zip(p99s[what], p99s[to]))
        ratios = [ratio("beside", "alone"), ratio("apart", "alone"), ratio("beside", "apart")]
        middles = "".join(f"{statistics.median(p99s[kind]):>8.3f}" for kind in p99s)
        rate = sent / self.options.rounds / (self.options.seconds + UNDER_WAY_S)
        print(f"{self.case.name:20}{middles}{ratios[0]:>14.2f}{ratios[1]:>13.2f}{ratios[2]:>14.2f}{rate:>11.1f}", flush=True)
        return ratios[0], ratios[2]

    def window(self, seconds):
        path, body, headers, wanted = self.bystander
        status, answer = ask(self.server.url, path, body, headers)
        if status != 200 or json.loads(answer)["outputs"][0]["data"] != wanted:
            sys.exit(f"{self.case.name}: the bystander is answered {status} {answer.decode()}")
        report = wrk(self.server.url, path, body, headers, 1, seconds)
        if report.errors:
            sys.exit(f"{self.case.name}: {report.errors} of the bystander's requests failed")
        return report.p99


def rotated(kinds, by):
    """Whatever drifts meets each kind in each place."""
    by %= len(kinds)
    return kinds[by:] + kinds[:by]


def bystander(model):
    """Its path, body, headers and the first output's right values."""
    if model == "digits":
        photo = (ROOT / "tests/fixtures/photos/seven.png").read_bytes()
        return "/v2/models/digits/infer", photo, {"content-type": "image/png"}, ["7", "1", "2"]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    return "/v2/models/scale/infer", json.dumps({"inputs": [tensor]}).encode(), {}, [2, 4, 6, 8]


@contextmanager
def attack(server, case, in_flight):
    attackers = [Attacker(server, case) for _ in range(in_flight)]
    try:
        yield attackers
    finally:
        for attacker in attackers:
            attacker.is_over = True
        for attacker in attackers:
            attacker.join()
    for attacker in attackers:
        if attacker.wrong:
            sys.exit(f"{case.name}: {attacker.wrong}")


class Attacker(threading.Thread):
    """Sends a case's request, waits for its answer, and again."""

    def __init__(self, server, case):
        super().__init__(daemon=True)
        self.address = server.admin if case.method == "PUT" else server.url
        self.case = case
        self.is_over = False
        self.sent = 0
        self.wrong = ""
        self.start()

    def run(self):
        case = self.case
        client = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=PATIENCE_S)
        while not self.is_over and not self.wrong:
            client.request(case.method, case.path, case.body, {"content-type": case.content_type})
            answer = client.getresponse()
            said = answer.read()
            self.sent += 1
            if answer.status not in case.statuses:
                text = said[:300].decode(errors="replace")
                self.wrong = f"answered {answer.status}, expected {case.statuses}: {text}"
        client.close()


if __name__ == "__main__":
    main()
