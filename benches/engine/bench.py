"""CPU time a run: wisp's engines against ONNX Runtime, on real models and inputs.

    bench.py [--models SUBSTRING] [--rounds 9] [--engines tract,rten] [--no-write]

Each model of models.py is loaded by ONNX Runtime (Python API; one thread, sequential) and by
each engine (engine_probe), which then run it in turn, round by round, so that a busy machine
slows all of them. A figure is the median over the rounds of a round's mean. CPU time is the
whole process's. ONNX Runtime runs with its inputs bound beforehand, but for strings, which its
Python API cannot bind: `run` is some 6 µs dearer. Loading is from file to first answer, in a
fresh process, median of 3.

What it is for an engine to agree is said in agreement.py. `auto` is what wisp chooses when it
examines a bundle of the model: tract, unless another that agrees is clearly faster.

Writes RESULTS.md and results.json beside it, unless --models or --no-write is given.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

import models
from agreement import Disagreement, largest_difference, tolerance_of

sys.path[:0] = [str(models.REPOSITORY / folder) for folder in ("benches", "tests/onnx")]
from support import machine  # noqa: E402
from probe import REFERENCE, Crashed, Hung, Probe  # noqa: E402

ROUND_US = 20_000  # of ONNX Runtime's runs in a round: many, where a run is short
MOST_RUNS = 2_000
LOADS = 3
LIMIT_S = 120.0
EXAMINED_TOLERANCE = 1e-3  # as the server's


@dataclass
class Result:
    """What one engine made of one model; times in µs of CPU."""

    refusal: str = ""
    run_us: float = 0.0
    load_us: float = 0.0
    difference: float = 0.0  # of the output's largest magnitude
    disagreement: str = ""

    @property
    def agrees(self):
        return not self.refusal and not self.disagreement


@dataclass
class Row:
    name: str
    reference: Result
    engines: dict[str, Result]
    auto: str  # empty where it would answer otherwise than ONNX Runtime, or is not measured here

    def ratio(self, engine):
        return self.engines[engine].run_us / self.reference.run_us


def main():
    options = read_options()
    # onnxruntime as an engine of wisp's is the same library, by its C interface.
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    os.environ.setdefault("WISP_ONNXRUNTIME", str(library))
    warnings.simplefilter("ignore")
    entries = [entry for entry in models.entries() if options.models in entry.name]
    rows = []
    print(heading(options.engines), flush=True)
    for entry in entries:
        rows.append(measure(entry, options))
        print(line(rows[-1], options.engines), flush=True)
    print("\n" + summary(rows, options.engines))
    if not options.models and options.write:
        write(rows, options)


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default="", metavar="SUBSTRING")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["tract", "rten"])
    parser.add_argument("--no-write", dest="write", action="store_false")
    return parser.parse_args()


def measure(entry, options):
    path, inputs = entry.prepare(), entry.inputs_folder
    tolerance = tolerance_of(path)
    with tempfile.TemporaryDirectory(prefix="wisp-bench-") as scratch:
        runners = {name: Runner(name, path, inputs, Path(scratch)) for name in [REFERENCE, *options.engines]}
        for runner in runners.values():
            runner.load()
        reference = runners[REFERENCE]
        if reference.result.refusal:
            sys.exit(f"{entry.name}: ONNX Runtime refuses it: {reference.result.refusal}")
        for runner in runners.values():
            if not runner.result.refusal:
                runner.compare(reference.outputs, tolerance)
        run_in_turn([runner for runner in runners.values() if not runner.result.refusal], options.rounds)
        for runner in runners.values():
            runner.probe.end()
    results = {name: runner.result for name, runner in runners.items()}
    auto = chosen(path, inputs)
    agrees = auto in options.engines and results[auto].agrees
    return Row(entry.name, results.pop(REFERENCE), results, auto if agrees else "")


def chosen(path, inputs):
    """The engine that an examination would take."""
    probe = Probe("auto", LIMIT_S)
    try:
        return probe.choose(path, inputs, EXAMINED_TOLERANCE).get("chosen", "")
    except (Crashed, Hung):
        return ""
    finally:
        probe.end()


class Runner:
    """One engine's process, with one model."""

    def __init__(self, name, path, inputs, scratch):
        self.probe = Probe(name, LIMIT_S)
        self.path, self.inputs, self.folder = path, inputs, scratch / name
        self.result = Result()
        self.graph = None
        self.outputs = []

    def load(self):
        """Loads it and runs it once, in fresh processes; the last one stays."""
        times = []
        try:
            for _ in range(LOADS):
                self.probe.end()
                loaded = self.probe.load(self.path)
                if "loaded" not in loaded:
                    return self.refuse(loaded.get("refused") or loaded["failed"])
                self.graph = loaded["loaded"]
                ran = self.probe.run(self.graph, self.inputs, outputs=self.folder)
                if "failed" in ran:
                    return self.refuse(ran["failed"])
                times.append(loaded["cpu_us"] + ran["cpu_us"][0])
        except (Crashed, Hung) as lost:
            return self.refuse(str(lost))
        self.result.load_us = statistics.median(times)
        files = sorted(self.folder.iterdir(), key=lambda file: int(file.stem))
        self.outputs = [numpy_helper.to_array(onnx.load_tensor(file)) for file in files]
        shutil.rmtree(self.folder)

    def compare(self, wanted, tolerance):
        try:
            self.result.difference = largest_difference(self.outputs, wanted, tolerance)
        except Disagreement as disagreement:
            self.result.disagreement = str(disagreement)

    def refuse(self, reason):
        self.result.refusal = " ".join(reason.split())

    def mean_us(self, times):
        return statistics.fmean(self.probe.run(self.graph, self.inputs, times)["cpu_us"])


def run_in_turn(runners, rounds):
    warm = runners[0].mean_us(3)
    times = int(min(MOST_RUNS, max(1, ROUND_US / max(warm, 1))))
    means = [[runner.mean_us(times) for runner in runners] for _ in range(rounds + 1)]
    for runner, column in zip(runners, zip(*means[1:])):  # the first round warms up
        runner.result.run_us = statistics.median(column)


def heading(engines):
    columns = ["model", "ORT µs", *engines, "auto", "auto/ORT", "difference"]
    widths = [27, 9, *(8 for _ in engines), 12, 8, 10]
    return " ".join(f"{column:{'<' if not index else '>'}{width}}" for index, (column, width) in enumerate(zip(columns, widths)))


def line(row, engines):
    cells = [f"{row.name:27}", f"{row.reference.run_us:9.1f}", *(f"{cell(row, engine):>8}" for engine in engines)]
    return " ".join([*cells, *auto_cells(row)])


def auto_cells(row):
    if not row.auto:
        return [f"{'none':>12}", f"{'-':>8}", f"{'-':>10}"]
    return [f"{row.auto:>12}", f"{row.ratio(row.auto):8.2f}", f"{row.engines[row.auto].difference:10.1e}"]


def cell(row, engine):
    result = row.engines[engine]
    if result.refusal:
        return "refused"
    return f"{row.ratio(engine):.2f}" + ("!" if result.disagreement else "")


def summary(rows, engines):
    served = [row for row in rows if row.auto]
    ratios = sorted(row.ratio(row.auto) for row in served)
    lines = [f"{len(served)} of {len(rows)} models run by an engine that agrees with ONNX Runtime."]
    if ratios:
        worst = max(served, key=lambda row: row.ratio(row.auto))
        faster = sum(ratio <= 1 for ratio in ratios)
        lines.append(
            f"auto / ONNX Runtime: median {statistics.median(ratios):.2f}, worst {ratios[-1]:.2f} "
            f"({worst.name}); {faster} at 1 or below."
        )
    for row in rows:
        for engine in engines:
            result = row.engines[engine]
            why = result.refusal or result.disagreement
            if why:
                lines.append(f"{row.name}, {engine}{'' if result.refusal else ' (!)'}: {why[:200]}")
    return "\n".join(lines)


def write(rows, options):
    folder = Path(__file__).parent
    about = {"date": datetime.date.today().isoformat(), "machine": machine(), "onnxruntime": onnxruntime.__version__}
    results = {row.name: {"auto": row.auto, "reference": asdict(row.reference)} for row in rows}
    for row in rows:
        results[row.name]["engines"] = {name: asdict(result) for name, result in row.engines.items()}
    text = json.dumps({**about, "rounds": options.rounds, "models": results}, indent=1)
    (folder / "results.json").write_text(text + "\n")
    (folder / "RESULTS.md").write_text(markdown(rows, options, about))


def markdown(rows, options, about):
    engines = options.engines
    columns = ["model", "ORT µs", *(f"{engine} / ORT" for engine in engines), "auto", "auto / ORT"]
    columns += ["difference", "load ms: ORT", *engines]
    lines = [
        "# Engines against ONNX Runtime",
        "",
        f"`make bench-engine` on {about['date']}: {about['machine']}; ONNX Runtime {about['onnxruntime']}, "
        f"{options.rounds} rounds.",
        "",
        "CPU time a run, one thread, in alternation: below 1 is faster than ONNX Runtime, `!` gives other",
        "values than it. `auto` is what an examination chooses; `difference` is its largest from ONNX",
        "Runtime, by the output's largest magnitude. `load` is CPU time from the file to the first answer.",
        "bench.py says how it is measured.",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" + "|--:" * (len(columns) - 1) + "|",
    ]
    for row in rows:
        loads = [row.engines[engine] for engine in engines]
        loads = [row.reference, *loads]
        cells = [row.name, f"{row.reference.run_us:,.0f}", *(cell(row, engine) for engine in engines)]
        cells += [part.strip() for part in auto_cells(row)]
        cells += ["-" if load.refusal else f"{load.load_us / 1000:.1f}" for load in loads]
        lines.append("| " + " | ".join(cells) + " |")
    first, *rest = summary(rows, engines).split("\n")
    lines += ["", first, *rest[:1], "", *(f"- {text}" for text in rest[1:]), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except models.fetch.Failure as failure:
        sys.exit(f"bench.py: {failure}")
