"""tritonclient: tensors of every datatype, in every form that they may have on the wire."""

import urllib.request

import ml_dtypes
import numpy as np

from .server import DATATYPES
from .triton_client import ONE, checks_of_each, same

ROWS = np.arange(4096, dtype=np.float32).reshape(1024, 4)


def checks(url):
    return checks_of_each(url, lambda client: EVERY if client.is_grpc else (*EVERY, *ONLY_HTTP))


def values(finite=False):
    """Two rows of each datatype, with the values that are lost first. JSON knows no infinity."""
    integers = "int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()
    limits = {name: (np.iinfo(name).min, np.iinfo(name).max) for name in integers}
    arrays = {name: np.array([limits[name], [1, 2]], name) for name in integers}
    arrays["int64"][1] = arrays["uint64"][1] = 2**53 + 1
    arrays["bool"] = np.array([[True, False], [False, False]])
    odd = [1.5, -2] if finite else [np.inf, np.nan]
    arrays["fp16"] = np.float16([[65504, 6e-8], [-0.0, 1]])
    arrays["bf16"] = np.array([[3e38, 1e-40], [-0.0, 1]], ml_dtypes.bfloat16)
    arrays["fp32"] = np.array([[1e-45, 3.4028235e38], odd], np.float32)
    arrays["fp64"] = np.array([[5e-324, 1.7976931348623157e308], odd], np.float64)
    arrays["bytes"] = np.array([["ö", ""], ["a\n\0", "x" * 300]], object)
    arrays["bytes"] = np.array([[text.encode() for text in row] for row in arrays["bytes"]], object)
    return {name.lower(): arrays[name.lower()] for name in DATATYPES}


def all_datatypes(client):
    arrays = values()
    arrays["bytes"][0, 1] = b"\xff\xfe\0"
    result = client.infer("identity", client.inputs(**arrays))
    for name, array in arrays.items():
        same(result.as_numpy(f"{name}_out"), array)


def empty_tensors(client):
    arrays = {name: array[:0] for name, array in values().items()}
    result = client.infer("identity", client.inputs(**arrays))
    for name, array in arrays.items():
        same(result.as_numpy(f"{name}_out"), array)


def json_tensors(client):
    arrays = values(finite=True)
    halves = {name: arrays.pop(name) for name in ("fp16", "bf16")}
    inputs = [client.input(name, array, binary_data=False) for name, array in arrays.items()]
    inputs += client.inputs(**halves)
    outputs = [client.output(f"{name}_out", binary_data=False) for name in arrays]
    result = client.infer("identity", inputs, outputs=outputs)
    for name, array in arrays.items():
        got, wanted = result.as_numpy(f"{name}_out"), array
        if name == "bytes":
            wanted = np.array([[text.decode() for text in row] for row in array], object)
        same(got, wanted)


def json_only(client):
    """Nothing binary: http.aio then calls a body octets that is JSON."""
    for model, names, output in (("add", "ab", "sum"), ("scale", "x", "y")):
        inputs = [client.input(name, ONE, binary_data=False) for name in names]
        outputs = [client.output(output, binary_data=False)]
        same(client.infer(model, inputs, outputs=outputs).as_numpy(output), ONE * 2)
    words = np.array([["{", "ö"]], object)
    inputs = [client.input("INPUT0", words, binary_data=False)]
    outputs = [client.output("OUTPUT0", binary_data=False)]
    same(client.infer("simple_identity", inputs, outputs=outputs).as_numpy("OUTPUT0"), words)


def mixed_forms(client):
    inputs = [client.input("a", ONE, binary_data=False), client.input("b", ONE)]
    for binary in (True, False):
        outputs = [client.output("sum", binary_data=binary)]
        same(client.infer("add", inputs, outputs=outputs).as_numpy("sum"), ONE + ONE)
    both = client.inputs(INPUT0=np.ones((1, 16), np.int32), INPUT1=np.ones((1, 16), np.int32))
    outputs = [client.output("OUTPUT0", binary_data=False), client.output("OUTPUT1")]
    result = client.infer("simple", both, outputs=outputs)
    assert result.get_output("OUTPUT0")["data"] == [2] * 16, result.get_response()
    same(result.as_numpy("OUTPUT1"), np.zeros((1, 16), np.int32))


def what_json_cannot_carry(client):
    """It is refused, and told how it can be carried."""
    odd = np.float32([np.nan, np.inf])
    inputs, in_json = client.inputs(x=odd), [client.output("y", binary_data=False)]
    client.refused("invalid", "binary", "infer", "echo", inputs, outputs=in_json)
    inputs = [client.input("x", odd, binary_data=False)]
    client.refused("invalid", "binary", "infer", "echo", inputs)
    arrays = values()
    arrays["bytes"][0, 0] = b"\xff"
    for name in ("fp16", "bf16", "bytes"):
        outputs = [client.output(f"{name}_out", binary_data=False)]
        inputs = client.inputs(**arrays)
        client.refused("invalid", f"{name}_out", "infer", "identity", inputs, outputs=outputs)
    inputs = client.inputs(**arrays)
    inputs[DATATYPES.index("FP16")] = client.input("fp16", arrays["fp16"], binary_data=False)
    client.refused("invalid", "fp16", "infer", "identity", inputs)


def compression(client):
    inputs, algorithms = client.inputs(x=ROWS), (None, "gzip", "deflate")
    if client.is_grpc:
        choices = [{"compression_algorithm": algorithm} for algorithm in algorithms]
    else:
        choices = [
            {"request_compression_algorithm": request, "response_compression_algorithm": response}
            for request in algorithms
            for response in algorithms
        ]
    for choice in choices:
        same(client.infer("scale", inputs, **choice).as_numpy("y"), ROWS * 2)
        small = client.infer("add", client.inputs(a=ONE, b=ONE), **choice)
        same(small.as_numpy("sum"), ONE + ONE)
    if not client.is_grpc:
        inputs = [client.input("x", ROWS, binary_data=False)]
        outputs = [client.output("y", binary_data=False)]
        for choice in choices:
            result = client.infer("scale", inputs, outputs=outputs, **choice)
            same(result.as_numpy("y"), ROWS * 2)


def compression_on_the_wire(client):
    """The clients do not tell in which form an answer came."""
    url = f"http://{client.url}/v2/models/echo/infer"
    raw = {"Inference-Header-Content-Length": "0"}
    for algorithm in ("gzip", "deflate"):
        headers = {**raw, "Accept-Encoding": algorithm}
        request = urllib.request.Request(url, ROWS.tobytes(), headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.headers["Content-Encoding"] == algorithm, answer.headers
            size = len(answer.read())
            assert size < ROWS.nbytes, f"{algorithm} made {size} bytes of {ROWS.nbytes}"


EVERY = (all_datatypes, empty_tensors, compression)
# gRPC has one form, and no say in how it is compressed.
ONLY_HTTP = (
    json_tensors,
    json_only,
    mixed_forms,
    what_json_cannot_carry,
    compression_on_the_wire,
)
