"""What several threads make of a run's time: `make bench-threads`.

    threads.py [--models SUBSTRING] [--rounds 9] [--threads 2]

Each model is run by ONNX Runtime and by tract, on one thread and on several, in turn, round by
round. A figure is the median over the rounds of a round's mean, by the clock; `CPU` is the CPU time
on several threads over that on one. What takes less than half a millisecond is left out, and what
one of the two does not run, with the reason.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings

import onnxruntime

import models

sys.path[:0] = [str(models.REPOSITORY / folder) for folder in ("benches", "tests/onnx")]
from support import load_average, machine  # noqa: E402
from probe import REFERENCE, Crashed, Hung, Probe  # noqa: E402

ROUND_US = 50_000
LIMIT_S = 120.0
# Nothing to share in smaller ones.
LEAST_US = 500


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default="", metavar="SUBSTRING")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    many = options.threads
    print(f"{machine()}, {load_average()}; ONNX Runtime {onnxruntime.__version__}, {many} threads; ms")
    print(f"{'model':27}{'tract 1':>9}{many:>8}{'faster':>8}{'CPU':>7}{'ORT 1':>9}{many:>8}{'faster':>8}{'CPU':>7}{f'tract/ORT, {many}':>15}")
    ratios = [measure(entry, options) for entry in models.entries() if options.models in entry.name]
    ratios = [ratio for ratio in ratios if ratio]
    if ratios:
        print(f"tract / ONNX Runtime on {many} threads, by the clock: median {statistics.median(ratios):.2f}, worst {max(ratios):.2f}")


def measure(entry, options):
    runners = []
    try:
        path = entry.prepare()
        for engine in ("tract", REFERENCE):
            for threads in (1, options.threads):
                runners.append(Runner(engine, threads, path, entry.inputs_folder))
        times = runners[0].times()
        if not times:
            return None
        for turn in range(options.rounds + 1):  # the first warms up
            for runner in runners:
                runner.measure(times, kept=turn > 0)
    except (Crashed, Hung, Refused, models.fetch.Failure) as failure:
        print(f"{entry.name:27} left out: {failure}", flush=True)
        return None
    finally:
        for runner in runners:
            runner.probe.end()
    tract, tract_many, reference, reference_many = runners
    cells = "".join(
        f"{one.took_ms:>9.2f}{more.took_ms:>8.2f}{one.took_ms / more.took_ms:>8.2f}{more.cpu_ms / one.cpu_ms:>7.2f}"
        for one, more in ((tract, tract_many), (reference, reference_many))
    )
    ratio = tract_many.took_ms / reference_many.took_ms
    print(f"{entry.name:27}{cells}{ratio:>15.2f}", flush=True)
    return ratio


class Refused(Exception):
    """An engine does not load the model, or does not run it."""


class Runner:
    """One engine's process, with one model, on so many threads."""

    def __init__(self, engine, threads, path, inputs):
        self.probe = Probe(engine, LIMIT_S)
        self.threads, self.inputs = threads, inputs
        self.engine, self.took, self.cpu = engine, [], []
        self.graph = self.answer(self.probe.load(path, threads), "loaded")["loaded"]

    @property
    def took_ms(self):
        return statistics.median(self.took) / 1e3

    @property
    def cpu_ms(self):
        return statistics.median(self.cpu) / 1e3

    def times(self):
        """Runs a round; 0 where they are too short."""
        one = statistics.median(self.run(5)["took_us"])
        return max(1, round(ROUND_US / one)) if one >= LEAST_US else 0

    def measure(self, times, kept):
        ran = self.run(times)
        if kept:
            self.took.append(statistics.fmean(ran["took_us"]))
            self.cpu.append(statistics.fmean(ran["cpu_us"]))

    def run(self, times):
        return self.answer(self.probe.run(self.graph, self.inputs, times, threads=self.threads), "took_us")

    def answer(self, answer, wanted):
        if wanted not in answer:
            raise Refused(f"{self.engine}: {next(iter(answer.values()))}")
        return answer


if __name__ == "__main__":
    main()
