"""Runs the ONNX project's own backend tests through wisp's engines, and ONNX Runtime.

    node_tests.py [--suite opset18 …] [--engines tract,rten] [--cases SUBSTRING] [--subset]
                  [--no-reference] [--check | --update] [--brief] [--details FILE]

For each suite (cases.py) and engine: how many cases pass, are refused (at load), fail (in the
run), come out wrong, crash or hang. `auto` stands for what wisp makes of several engines: a
case passes where one of them, in order, loads it, runs it and gives the expected values.
Values are compared as onnx's own runner does: shape and type exactly, floats by the case's
tolerances, BF16 within two of its steps (2**-6), as some references cut digits off, or round in
between. Cases with sequences, optionals or maps at the door cannot be served: they count. Those with
datatypes at the door that the protocol lacks (float8, float4, whole numbers of two bits and four) run
with Casts there, as wisp's refusal asks for; ONNX Runtime runs them as they are. What is cast from such
a datatype must be the number that is expected.

expected.json beside this file has the outcome of each case. --check fails if a case that
passed no longer does, or comes out wrong where it did not; --update writes it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

import cases
import expected
import report
from probe import REFERENCE, Crashed, Hung, Probe

LIMIT_S = 10.0


@dataclass(frozen=True)
class Outcome:
    kind: str  # of report.KINDS
    reason: str = ""


def main():
    options = read_options()
    suites = options.suite or (expected.SUBSET_SUITES if options.subset else cases.SUITES)
    chosen = [case for suite in suites for case in cases.load(suite)]
    chosen = [case for case in chosen if options.cases in case.name]

    outcomes = run_all(chosen, options.engines, options.reference)
    if options.brief:
        report.print_shares(chosen, outcomes)
    else:
        report.print_all(chosen, options.engines, outcomes)
    if options.details:
        report.write_details(options.details, chosen, outcomes)
    if options.update:
        expected.update(chosen, options.engines, outcomes)
    if options.check and not expected.check(chosen, options.engines, outcomes):
        sys.exit(1)


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--suite", action="append", choices=cases.SUITES)
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["tract", "rten"])
    parser.add_argument("--cases", default="", metavar="SUBSTRING")
    parser.add_argument("--subset", action="store_true", help="the cases that CI runs")
    parser.add_argument("--no-reference", dest="reference", action="store_false")
    parser.add_argument("--brief", action="store_true", help="shares by suite, without the reasons")
    parser.add_argument("--details", type=Path, metavar="FILE", help="every outcome, as JSON")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true")
    action.add_argument("--update", action="store_true")
    return parser.parse_args()


def run_all(chosen, engines, reference):
    """Outcomes by engine, in the order of the cases. Each engine has a process of its own."""
    runners = [*engines, REFERENCE] if reference else engines
    with ThreadPoolExecutor(len(runners)) as pool:
        outcomes = dict(zip(runners, pool.map(lambda engine: run_engine(engine, chosen), runners)))
    by_engine = zip(*(outcomes[engine] for engine in engines))
    return {"auto": [first_that_agrees(row) for row in by_engine], **outcomes}


def first_that_agrees(row):
    """What is left where none agrees is the first that got furthest."""
    order = ["passed", "wrong", "hung", "crashed", "failed", "refused", "not servable"]
    return min(row, key=lambda outcome: order.index(outcome.kind))


def run_engine(engine, chosen):
    probe = Probe(engine, LIMIT_S)
    with tempfile.TemporaryDirectory(prefix="wisp-onnx-tests-") as scratch:
        try:
            return [run_case(probe, case, Path(scratch)) for case in chosen]
        finally:
            probe.end()


def run_case(probe, case, scratch):
    if not case.servable:
        return Outcome("not servable")
    try:
        loaded = probe.load(folder_of(probe, case) / "model.onnx")
        if "loaded" not in loaded:
            return Outcome("refused", loaded.get("refused") or loaded["failed"])
        outcomes = (run_data_set(probe, case, index, loaded, scratch) for index in range(case.data_sets))
        outcome = next((outcome for outcome in outcomes if outcome.kind != "passed"), Outcome("passed"))
        probe.unload(loaded["loaded"])
        return outcome
    except Crashed as crash:
        return Outcome("crashed", str(crash))
    except Hung as hang:
        return Outcome("hung", str(hang))


def folder_of(probe, case):
    return case.folder if probe.engine == REFERENCE else case.served_folder


def run_data_set(probe, case, index, loaded, scratch):
    folder, outputs = folder_of(probe, case) / str(index), scratch / "outputs"
    shutil.rmtree(outputs, ignore_errors=True)
    ran = probe.run(loaded["loaded"], folder / "inputs", outputs=outputs)
    if "failed" in ran:
        return Outcome("failed", ran["failed"])
    for number in range(len(loaded["outputs"])):
        wanted = folder / "expected" / f"{number}.pb"
        # Some data sets leave out an output whose value nobody promises.
        if wanted.exists():
            tolerance = (0, 0) if number in case.exact else (case.rtol, case.atol)
            difference = differs(read(outputs / f"{number}.pb"), read(wanted), *tolerance)
            if difference:
                return Outcome("wrong", f"output {number}: {difference}")
    return Outcome("passed")


def read(path):
    return numpy_helper.to_array(onnx.load_tensor(path))


def differs(got, wanted, rtol, atol):
    """What sets them apart, by the rules of onnx.backend.test.runner; nothing if they agree."""
    if got.shape != wanted.shape:
        return f"shape {list(got.shape)}, expected {list(wanted.shape)}"
    if got.dtype != wanted.dtype:
        return f"{got.dtype}, expected {wanted.dtype}"
    if got.dtype == object:
        return None if plain(got) == plain(wanted) else f"{plain(got)}, expected {plain(wanted)}"[:200]
    if got.dtype.isbuiltin != 1:  # of ml_dtypes, which NumPy cannot promote
        rtol = max(rtol, 2**-6) if got.dtype.name == "bfloat16" else rtol
        got, wanted = got.astype(np.float32), wanted.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = ~np.isclose(got, wanted, rtol=rtol, atol=atol, equal_nan=True)
    if not apart.any():
        return None
    at = np.argwhere(apart)[0]
    first = f"{got[tuple(at)]} at {at.tolist()}, expected {wanted[tuple(at)]}"
    return f"{apart.sum()} of {apart.size} values, first {first}"


def plain(strings):
    return [text.decode() if isinstance(text, bytes) else text for text in strings.ravel().tolist()]


if __name__ == "__main__":
    main()
