"""ONNX Runtime, by its Python API, behind engine_probe's JSON lines (see its head).

One thread (or `"threads"` of them, said when it loads), operators one after another, as wisp runs
its engines; else its defaults.
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
            return self.load(request["load"], request.get("threads", 1))
        if "run" in request:
            return self.run(request)
        del self.sessions[request["unload"]]
        return {"unloaded": request["unload"]}

    def load(self, path, threads):
        since = time.process_time_ns()
        try:
            session = onnxruntime.InferenceSession(path, options(threads), providers=["CPUExecutionProvider"])
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
        times, took = [], []
        try:
            run = prepare(session, Path(request["inputs"]))
            for _ in range(request.get("times", 1)):
                since, started = time.process_time_ns(), time.perf_counter_ns()
                outputs = run()
                took.append((time.perf_counter_ns() - started) / 1000)
                times.append((time.process_time_ns() - since) / 1000)
            if "write_outputs" in request:
                write(Path(request["write_outputs"]), outputs())
        except Exception as error:  # as above
            return {"failed": one_line(error)}
        return {"cpu_us": times, "took_us": took}


def options(threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what matters comes as an exception
    return options


def spec(value):
    return {"name": value.name, "datatype": value.type, "shape": value.shape}


def prepare(session, folder):
    """A function that runs the session and gives one that reads the outputs."""
    inputs = session.get_inputs()
    tensors = [onnx.load_tensor(folder / f"{index}.pb") for index in range(len(inputs))]
    names = [value.name for value in session.get_outputs()]
    if any(tensor.data_type == onnx.TensorProto.STRING for tensor in tensors):
        # Strings cannot be made an OrtValue, and what NumPy lacks can be nothing else.
        arrays = {value.name: numpy_helper.to_array(tensor) for value, tensor in zip(inputs, tensors)}

        def run_arrays():
            outputs = session.run(names, arrays)
            return lambda: outputs

        return run_arrays
    # The leanest way: `run` costs 6 µs more, `run_with_ort_values` a hundred.
    binding = session.io_binding()
    for value, tensor in zip(inputs, tensors):
        binding.bind_ortvalue_input(value.name, to_ort(tensor))
    for name in names:
        binding.bind_output(name)

    def run_bound():
        session.run_with_iobinding(binding)
        return binding.get_outputs

    return run_bound


def to_ort(tensor):
    array = numpy_helper.to_array(tensor)
    if array.dtype.isbuiltin == 1:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    # A type that NumPy has from ml_dtypes: its bits, and the name of the type. What is less
    # than a byte is packed, as in the message, at the front of as many bytes as elements.
    packed = numpy_helper.from_array(array).raw_data
    bits = np.zeros(array.shape, f"u{array.itemsize}")
    bits.reshape(-1).view(np.uint8)[: len(packed)] = np.frombuffer(packed, np.uint8)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, tensor.data_type)


def write(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    for index, value in enumerate(values):
        (folder / f"{index}.pb").write_bytes(from_ort(value).SerializeToString())


BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}


def from_ort(value):
    if isinstance(value, np.ndarray):
        return numpy_helper.from_array(value)
    if not value.is_tensor():
        raise TypeError(f"the output is a {value.data_type()}")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.element_type())
    if dtype.isbuiltin == 1 or dtype == object:
        return numpy_helper.from_array(value.numpy())
    shape = value.shape()
    size = (int(np.prod(shape)) * BITS.get(dtype.name, 8 * dtype.itemsize) + 7) // 8
    bits = ctypes.string_at(value.data_ptr(), size) if size else b""
    return onnx.TensorProto(dims=shape, data_type=value.element_type(), raw_data=bits)


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
