"""ONNX Runtime, by its Python API, behind engine_probe's JSON lines (see its head).

One thread, operators one after another, as wisp runs its engines; else its defaults.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper


class Reference:
    def __init__(self):
        self.sessions = {}
        self.next = 0

    def answer(self, request):
        if "load" in request:
            return self.load(request["load"])
        if "run" in request:
            return self.run(request)
        del self.sessions[request["unload"]]
        return {"unloaded": request["unload"]}

    def load(self, path):
        since = time.process_time_ns()
        try:
            session = onnxruntime.InferenceSession(path, options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no other class
            return {"refused": one_line(error)}
        cpu_us = (time.process_time_ns() - since) // 1000
        graph, self.next = self.next, self.next + 1
        self.sessions[graph] = session
        return {
            "loaded": graph,
            "engine": "onnxruntime",
            "cpu_us": cpu_us,
            "inputs": [spec(value) for value in session.get_inputs()],
            "outputs": [spec(value) for value in session.get_outputs()],
        }

    def run(self, request):
        session = self.sessions[request["run"]]
        folder = Path(request["inputs"])
        names = [value.name for value in session.get_outputs()]
        times = []
        try:
            inputs = {
                value.name: to_ort(onnx.load_tensor(folder / f"{index}.pb"))
                for index, value in enumerate(session.get_inputs())
            }
            for _ in range(request.get("times", 1)):
                since = time.process_time_ns()
                outputs = session.run_with_ort_values(names, inputs)
                times.append((time.process_time_ns() - since) // 1000)
            if "write_outputs" in request:
                write(Path(request["write_outputs"]), outputs)
        except Exception as error:  # as above
            return {"failed": one_line(error)}
        return {"cpu_us": times}


def options():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what matters comes as an exception
    return options


def spec(value):
    return {"name": value.name, "datatype": value.type, "shape": value.shape}


def to_ort(tensor):
    array = numpy_helper.to_array(tensor)
    if array.dtype.isbuiltin != 1 and array.dtype != object:
        # A type that NumPy has from ml_dtypes: its bits, and the name of the type.
        bits = array.view(f"u{array.itemsize}")
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, tensor.data_type)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def write(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    for index, value in enumerate(values):
        array = from_ort(value)
        (folder / f"{index}.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())


def from_ort(value):
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.element_type())
    if dtype.isbuiltin == 1 or dtype == object:
        return value.numpy()
    if dtype.name in ("int4", "uint4", "int2", "uint2", "float4_e2m1fn"):
        raise TypeError(f"{dtype.name} cannot be read through the Python API")
    shape = value.shape()
    size = int(np.prod(shape)) * dtype.itemsize
    bits = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(bits, dtype).reshape(shape)


def one_line(error):
    return " ".join(str(error).split())


def main():
    reference = Reference()
    for line in sys.stdin:
        try:
            answer = reference.answer(json.loads(line))
        except Exception as error:
            answer = {"failed": one_line(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
