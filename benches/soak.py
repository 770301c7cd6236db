"""Hours of everything at once, after which nothing may have grown: `make soak SECONDS=3600`.

    soak.py [--seconds 3600] [--every 2] [-- FLAG…]

Many models, most of them asked now and then; guests that trap and loop; input that is none; clients
that leave; models unloaded and loaded, bundles deployed, promoted, rolled back, refused and taken
out (soak_actors.py). FLAGs are `wisp serve`'s: with --idle-seconds and --memory-budget-mib, models go
cold and are woken all the while.

Each few seconds the server's resident memory, open files, threads and live sandboxes are read, and
the sizes of its state and cache folders. After a warm-up (a fifth of the time), the rest is cut in
ten: a line through their medians must not rise by more than LIMITS says from one end to the other.
Ends with status 1 where one does, where any answer was wrong or any status not expected, or where
requests are left over once all is quiet.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from soak_actors import TINY, Asker, BadInput, Bystander, Deployer, Hostile, Leaver, Toggler, hostile_bundle
from support import MIB, ROOT, Wisp, ask, comes_true, load_average, machine, pack, status_kib, verdict

WARM_UP = 0.2
SLICES = 10
ASKERS = 4


@dataclass(frozen=True)
class Limit:
    """How much a figure may rise over the time measured: a share of its mean, and something."""

    share: float
    constant: float


LIMITS = {
    "resident MiB": Limit(0.05, 16),
    "files": Limit(0, 8),
    "threads": Limit(0, 4),
    "live sandboxes": Limit(0, 4),
    "state folder MiB": Limit(0.05, 4),
    "cache folder MiB": None,  # compiled guests are kept, up to some GiB
}


def main():
    options = read_options()
    print(f"{machine()}, {load_average()}; {options.seconds:.0f} s")
    with tempfile.TemporaryDirectory(prefix="wisp-bench-") as scratch:
        folder = Path(scratch)
        places = ["--state", folder / "state", "--cache", folder / "cache", "--client-control", "true"]
        with Wisp(hostile_bundle(folder), *places, *options.flags) as server:
            deploy(server, folder)
            actors = start(server, folder)
            samples = soak(server, folder, actors, options)
            loads, evictions = (total(server, f"wisp_model_{name}_total") for name in ("loads", "evictions"))
            left = stop(server, actors)
            is_well = report(samples, actors, left, server.log())
            print(f"loads of models: {loads:.0f}; models that went cold: {evictions:.0f}")
    if any(flag.startswith("--idle-seconds") for flag in options.flags) and not evictions:
        sys.exit("FAILED: no model went cold, so none was woken, which is half of what is tried here")
    sys.exit(0 if is_well else 1)


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--every", type=float, default=2, help="seconds between samples")
    parser.add_argument("flags", nargs="*", metavar="FLAG")
    return parser.parse_args()


def deploy(server, folder):
    sources = {name: ROOT / "models" / name for name in ("digits", "imagenet", "minilm")}
    sources["toggled"] = ROOT / "tests/fixtures/models/add.onnx"
    for name in ("steady", *(f"tiny-{number}" for number in range(TINY))):
        sources[name] = ROOT / "tests/fixtures/models/scale.onnx"
    for name, source in sources.items():
        server.deploy(pack(source, folder / "model.wisp"), f"name={name}&activate=true")


def start(server, folder):
    actors = [Bystander(server), *(Asker(server, number) for number in range(ASKERS))]
    actors += [Hostile(server), BadInput(server), Leaver(server), Toggler(server), Deployer(server, folder)]
    for actor in actors:
        actor.start()
    return actors


def soak(server, folder, actors, options):
    """Samples, each with its second."""
    samples = []
    begun = time.monotonic()
    while (second := time.monotonic() - begun) < options.seconds:
        samples.append({"second": second} | sample(server, folder))
        if server.process.poll() is not None:
            sys.exit(f"the server ended after {second:.0f} s:\n{server.log()}")
        if len(samples) % 30 == 1:
            told = ", ".join(f"{name} {value:.0f}" for name, value in samples[-1].items())
            print(f"{told}; {sum(sum(actor.statuses.values()) for actor in actors)} requests", flush=True)
        time.sleep(options.every)
    return samples


def sample(server, folder):
    """Of the server alone: the processes that examine bundles come and go."""
    return {
        "resident MiB": status_kib(server.pid, "VmRSS") / 1024,
        "files": server.files(),
        "threads": status_kib(server.pid, "Threads"),
        "live sandboxes": server.live_sandboxes(),
        "state folder MiB": size(folder / "state") / MIB,
        "cache folder MiB": size(folder / "cache") / MIB,
    }


def size(folder):
    total = 0
    for parent, _, names in os.walk(folder):  # which passes over folders that went just now
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


def total(server, name):
    """Over all labels; 0 where the server has no such metric."""
    _, body = ask(server.url, "/metrics")
    values = re.findall(rf"^{name}{{.*}} (\S+)$", body.decode(), re.MULTILINE)
    return sum(map(float, values))


def stop(server, actors):
    """What is left once nobody asks: sandboxes that live."""
    for actor in actors:
        actor.is_over = True
    for actor in actors:
        actor.join()
    comes_true(lambda: server.live_sandboxes() == 0, 30)
    return server.live_sandboxes()


def report(samples, actors, left, log):
    is_well = report_growth(samples)
    totals = {}
    for actor in actors:
        statuses, wrong, unexpected = totals.setdefault(actor.name, (Counter(), [], []))
        statuses.update(actor.statuses)
        wrong += actor.wrong
        unexpected += actor.unexpected
    for name, (statuses, wrong, unexpected) in totals.items():
        told = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
        print(f"{name}: {len(wrong)} wrong, {len(unexpected)} unexpected ({told})")
        for text, count in Counter([*wrong, *unexpected]).most_common(5):
            print(f"    {count} × {text}")
        is_well &= not wrong and not unexpected
    print(f"live sandboxes once all was quiet: {left:.0f}")
    if "panicked" in log:
        print(f"a thread of the server panicked:\n{log[-3000:]}")
    return is_well and left == 0 and "panicked" not in log


def report_growth(samples):
    from_second = samples[-1]["second"] * WARM_UP
    measured = [sample for sample in samples if sample["second"] >= from_second]
    if len(measured) < SLICES:
        sys.exit("too short to tell growth: more --seconds")
    print(f"from {from_second:.0f} s on:")
    is_well = True
    for name, limit in LIMITS.items():
        values = [sample[name] for sample in measured]
        rise, goal = risen(values), ""
        if limit:
            most = limit.share * statistics.fmean(values) + limit.constant
            goal = f" (limit {most:.1f}: {verdict(rise <= most)})"
            is_well &= rise <= most
        print(f"  {name:18} {min(values):8.1f} to {max(values):8.1f}, rises by {rise:7.1f}{goal}")
    return is_well


def risen(values):
    """From one end to the other of a line through the medians of the slices."""
    bounds = [round(len(values) * part / SLICES) for part in range(SLICES + 1)]
    medians = [statistics.median(values[a:b]) for a, b in zip(bounds, bounds[1:])]
    return statistics.linear_regression(range(SLICES), medians).slope * (SLICES - 1)


if __name__ == "__main__":
    main()
