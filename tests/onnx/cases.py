"""The ONNX project's own backend tests, as files under target/onnx-tests/.

opset18   node tests of PyPI's onnx 1.13.1, whose wheel carries them
models18  its small whole graphs: simple, pytorch-operator, pytorch-converted
opset28   node tests of onnx 1.23.2, which makes them (the release that is installed)

A case is a folder: model.onnx, and for each of its data sets n, n/inputs/0.pb … and
n/expected/0.pb …, TensorProtos in the order of the graph's inputs and outputs; case.json
says the rest. Where the door has datatypes that the protocol lacks, the folder `cast` has the same
with a Cast for each of them (door.py): engines run that, ONNX Runtime the case as it is. A suite is
made once: `.complete` is its last file.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY / "models"))
import fetch  # noqa: E402  (models/fetch.py)

import door  # noqa: E402

ROOT = REPOSITORY / "target" / "onnx-tests"
LAYOUT = "3"  # of what is under ROOT; another one is made anew

OLD = "onnx==1.13.1"
OLD_SHA256 = "fb7951ed7c13383223bc57c4aacd2c07f3b35c8e6b3959c0e56b19f4bf22d193"
OLD_DATA = "onnx/backend/test/data/"
NEW_VERSION = "1.23.2"

SUITES = ["opset18", "models18", "opset28"]
RTOL, ATOL = 1e-3, 1e-7  # as onnx has them where a case names none


@dataclass(frozen=True)
class Case:
    suite: str
    name: str
    group: str  # inference, training or loss
    operators: tuple[str, ...]
    servable: bool  # tensors in, tensors out
    rtol: float
    atol: float
    data_sets: int
    exact: tuple[int, ...]  # outputs of datatypes that the protocol lacks

    @property
    def folder(self):
        """As the suite has it."""
        return ROOT / self.suite / self.name

    @property
    def has_casts(self):
        return (self.folder / "cast").exists()

    @property
    def served_folder(self):
        """As wisp's engines run it."""
        return self.folder / "cast" if self.has_casts else self.folder


def load(suite):
    """A suite's cases by name; its files are made where they are missing."""
    complete = ROOT / suite / ".complete"
    if not complete.exists() or complete.read_text() != LAYOUT:
        print(f"{suite}: making its files...", file=sys.stderr, flush=True)
        shutil.rmtree(ROOT / suite, ignore_errors=True)
        (ROOT / suite).mkdir(parents=True)
        MAKERS[suite]()
        complete.write_text(LAYOUT)
    folders = sorted(path for path in (ROOT / suite).iterdir() if path.is_dir())
    return [read_case(suite, folder) for folder in folders]


def read_case(suite, folder):
    about = json.loads((folder / "case.json").read_text())
    about["operators"] = tuple(about["operators"])
    about["exact"] = tuple(about["exact"])
    return Case(suite, folder.name, group_of(folder.name), **about)


TRAINING = re.compile("training|adagrad|adam|momentum|gradient")
LOSS = re.compile("nllloss|_sce_|softmax_?cross_?entropy|negative_?log_?likelihood")


def group_of(name):
    """By name, as the expanded cases hold only plain operators."""
    if TRAINING.search(name):
        return "training"
    return "loss" if LOSS.search(name) else "inference"


def make_opset18():
    make_from_wheel("opset18", ["node"])


def make_models18():
    make_from_wheel("models18", ["simple", "pytorch-operator", "pytorch-converted"])


def make_from_wheel(suite, kinds):
    with zipfile.ZipFile(old_wheel()) as wheel:
        names = set(wheel.namelist())
        models = [name for name in names if name.startswith(OLD_DATA) and name.endswith("/model.onnx")]
        for path in models:
            folder = path.removesuffix("model.onnx")
            kind, name = folder.removeprefix(OLD_DATA).strip("/").split("/")
            if kind not in kinds:
                continue
            content = wheel.read(path)
            model = onnx.load_from_string(content)
            about = json.loads(wheel.read(f"{folder}data.json")) if f"{folder}data.json" in names else {}
            sets = []
            while f"{folder}test_data_set_{len(sets)}/output_0.pb" in names:
                at = f"{folder}test_data_set_{len(sets)}/"
                sets.append([read_row(wheel, names, f"{at}{row}") for row in ("input", "output")])
            tolerance = (about.get("rtol", RTOL), about.get("atol", ATOL))
            write_case(ROOT / suite / name, model, content, sets, tolerance)


def read_row(wheel, names, prefix):
    row = []
    while f"{prefix}_{len(row)}.pb" in names:
        row.append(wheel.read(f"{prefix}_{len(row)}.pb"))
    return row


def old_wheel():
    """Downloaded but not installed: it holds the data, the installed onnx reads it."""
    folder = ROOT / "wheels"
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        # Any of its builds would do, the digest is of this one.
        build = ["--only-binary=:all:", "--python-version=3.11", "--platform=manylinux2014_x86_64"]
        arguments = ["download", "--no-deps", *build, "--dest", folder, OLD]
        fetch.run_pip(f"the download of {OLD}", sys.executable, arguments)
        wheels = list(folder.glob("*.whl"))
    fetch.check_digest(wheels[0].name, OLD_SHA256, wheels[0].read_bytes())
    return wheels[0]


def make_opset28():
    # In a process of its own: collecting them takes seconds and hundreds of modules.
    subprocess.run([sys.executable, __file__, "opset28"], check=True)


def make_generated():
    from onnx.backend.test.case.node import collect_testcases

    if onnx.__version__ != NEW_VERSION:
        sys.exit(f"opset28 is the tests of onnx {NEW_VERSION}, {onnx.__version__} is installed")
    warnings.simplefilter("ignore")  # of the overflows that some cases are about
    for case in collect_testcases():
        graph = case.model.graph
        sets = [
            [encode_row(graph.input, inputs), encode_row(graph.output, outputs)]
            for inputs, outputs in case.data_sets
        ]
        content = case.model.SerializeToString()
        write_case(ROOT / "opset28" / case.name, case.model, content, sets, (case.rtol, case.atol))


def encode_row(infos, values):
    return [encode(info, value) for info, value in zip(infos, values)]


def encode(info, value):
    """None for what is no tensor: such a case is only counted."""
    if not info.type.HasField("tensor_type"):
        return None
    if not isinstance(value, onnx.TensorProto):
        value = numpy_helper.from_array(np.asarray(value), info.name)
    return value.SerializeToString()


def write_case(folder, model, content, sets, tolerance):
    graph = model.graph
    folder.mkdir()
    (folder / "model.onnx").write_bytes(content)
    # Initializers may be listed among the inputs; the data sets leave them out.
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    servable = all(value.type.HasField("tensor_type") for value in [*inputs, *graph.output])
    if servable:
        ends = [("inputs", inputs), ("expected", graph.output)]
        write_sets(folder, ends, sets, typed)
        with_casts = door.widened(model)
        if with_casts:
            (folder / "cast").mkdir()
            onnx.save(with_casts, folder / "cast" / "model.onnx")
            write_sets(folder / "cast", ends, sets, door.widened_tensor)
    about = {
        "operators": sorted({node.op_type for node in graph.node}),
        "servable": servable,
        "rtol": tolerance[0],
        "atol": tolerance[1],
        "data_sets": len(sets),
        "exact": [number for number, value in enumerate(graph.output) if door.is_lacking(value)],
    }
    (folder / "case.json").write_text(json.dumps(about))


def write_sets(folder, ends, sets, written):
    for index, rows in enumerate(sets):
        for (row, infos), tensors in zip(ends, rows):
            at = folder / str(index) / row
            at.mkdir(parents=True)
            for number, tensor in enumerate(tensors):
                (at / f"{number}.pb").write_bytes(written(infos[number], tensor))


def typed(info, content):
    """onnx 1.13.1 wrote the bits of BF16, which NumPy lacked, as UINT16."""
    if info.type.tensor_type.elem_type != TensorProto.BFLOAT16:
        return content
    tensor = onnx.load_tensor_from_string(content)
    if tensor.data_type == TensorProto.UINT16:
        tensor.data_type = TensorProto.BFLOAT16
    return tensor.SerializeToString()


MAKERS = {"opset18": make_opset18, "models18": make_models18, "opset28": make_opset28}

if __name__ == "__main__":
    make_generated()
