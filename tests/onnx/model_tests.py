"""Real models on real inputs through each of wisp's engines, against ONNX Runtime's answers.

    model_tests.py [--models SUBSTRING]             fails where an engine does not agree
    model_tests.py --update [--models SUBSTRING]    asks ONNX Runtime, and notes its answers

The models and inputs are those of `make bench-engine`: what comes out of pinned packages
(benches/engine/models.py) stays under target/zoo, and the small ones of scikit-learn's stand in
tabular/, where benches/engine/trained.py writes them. models.json beside this file has, for each
output, its shape and type and a sample of its values, among them the largest; and the engines
that load the model, of which each must load it and agree (agreement.py). `auto` is the one that
an examination would take, measured on the same input; it must be one of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from probe import REFERENCE, REPOSITORY, Crashed, Hung, Probe

sys.path.insert(0, str(REPOSITORY / "benches" / "engine"))
from agreement import Disagreement, largest_difference, tolerance_of  # noqa: E402

import models  # noqa: E402

FILE = Path(__file__).with_name("models.json")
TABULAR = Path(__file__).with_name("tabular")
ENGINES = ["tract", "rten"]
AUTO_TOLERANCE = 1e-3  # as an examination has it
SAMPLE = 150
LIMIT_S = 180.0


class Refused(Exception):
    """The engine does not load the model, or does not run it."""


@dataclass(frozen=True)
class Kept:
    """A model and its inputs in a folder, to be used as models.Entry is."""

    inputs_folder: Path

    @property
    def name(self):
        return self.inputs_folder.name

    def prepare(self):
        return self.inputs_folder / "model.onnx"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default="", metavar="SUBSTRING")
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    chosen = [entry for entry in entries() if options.models in entry.name]
    if options.update:
        known.update({entry.name: ask_reference(entry) for entry in chosen})
        write(known)
    problems = [problem for entry in chosen for problem in check(entry, known.get(entry.name))]
    if options.update:
        sys.exit("\n".join(problems))
    print(f"{len(chosen)} models agree with ONNX Runtime" if not problems else "\n".join(problems))
    sys.exit(1 if problems else 0)


def entries():
    packaged = [entry for entry in models.PACKAGED if entry.tested]
    return [*packaged, *(Kept(folder) for folder in sorted(TABULAR.iterdir()))]


def ask_reference(entry):
    """ONNX Runtime's answers, and the engines that load the model."""
    path = entry.prepare()
    outputs = [describe(output) for output in run(REFERENCE, path, entry.inputs_folder)]
    return {"engines": [engine for engine in ENGINES if loads(engine, path)], "outputs": outputs}


def loads(engine, path):
    probe = Probe(engine, LIMIT_S)
    try:
        return "loaded" in probe.load(path)
    finally:
        probe.end()


def describe(output):
    at = sample_of(output)
    values = output.ravel()[at].tolist()
    if np.issubdtype(output.dtype, np.floating):
        values = [float(f"{value:.6g}") for value in values]
    return {"shape": list(output.shape), "dtype": str(output.dtype), "at": at, "values": values}


def sample_of(output):
    if not output.size:
        return []
    spread = np.linspace(0, output.size - 1, min(SAMPLE, output.size)).astype(int)
    return sorted({*spread.tolist(), int(np.abs(output).argmax())})


def check(entry, known):
    """A line for each engine that does not load the model or does not agree."""
    if known is None or not known["engines"]:
        return [f"{entry.name}: no engine is known to load it"]
    path, problems, told, agreeing = entry.prepare(), [], [], []
    tolerance = tolerance_of(path)
    for engine in known["engines"]:
        try:
            outputs = run(engine, path, entry.inputs_folder)
            difference = largest_difference(*samples(outputs, known["outputs"]), tolerance)
            told.append(f"{engine} {difference:.1e}")
            agreeing.append(engine)
        except (Refused, Disagreement, Crashed, Hung) as problem:
            problems.append(f"{entry.name}, {engine}: {problem}")
    try:
        engine, reason = choose(path, entry.inputs_folder)
        told.append(f"auto {engine}")
        if engine not in agreeing:
            problems.append(f"{entry.name}, auto: {engine} is taken: {reason}")
    except (Refused, Crashed, Hung) as problem:
        problems.append(f"{entry.name}, auto: {problem}")
    print(f"{entry.name}: {', '.join(told)}", flush=True)
    return problems


def choose(path, inputs):
    probe = Probe("auto", LIMIT_S)
    try:
        choice = probe.choose(path, inputs, AUTO_TOLERANCE)
    finally:
        probe.end()
    if "failed" in choice:
        raise Refused(choice["failed"])
    return choice["chosen"], choice["reason"]


def samples(outputs, known):
    """What came and what was expected, at the places that are known."""
    if len(outputs) != len(known):
        raise Disagreement(f"{len(outputs)} outputs for {len(known)}")
    for index, (output, about) in enumerate(zip(outputs, known)):
        if [*output.shape] != about["shape"] or str(output.dtype) != about["dtype"]:
            due = f"{about['dtype']}{about['shape']}"
            raise Disagreement(f"output {index} is {output.dtype}{list(output.shape)}, not {due}")
    got = [output.ravel()[about["at"]] for output, about in zip(outputs, known)]
    wanted = [np.array(about["values"], about["dtype"]) for about in known]
    return got, wanted


def run(engine, path, inputs):
    probe = Probe(engine, LIMIT_S)
    with tempfile.TemporaryDirectory(prefix="wisp-models-") as scratch:
        try:
            loaded = probe.load(path)
            if "loaded" not in loaded:
                raise Refused(loaded.get("refused") or loaded["failed"])
            ran = probe.run(loaded["loaded"], inputs, outputs=scratch)
            if "failed" in ran:
                raise Refused(ran["failed"])
        finally:
            probe.end()
        files = sorted(Path(scratch).iterdir(), key=lambda file: int(file.stem))
        return [numpy_helper.to_array(onnx.load_tensor(file)) for file in files]


def write(known):
    rows = (f"{json.dumps(name)}: {json.dumps(about)}" for name, about in sorted(known.items()))
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    try:
        main()
    except models.fetch.Failure as failure:
        sys.exit(f"model_tests.py: {failure}")
