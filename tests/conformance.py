"""Existing clients against a running wisp: `make conformance`.

tritonclient, over HTTP and gRPC and their asynchronous forms, and grpcio's health client, as
their users call them. Starts a server of its own on free ports; says what failed.
"""

import asyncio
import queue
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

ROOT = Path(__file__).parent.parent
WISP = ROOT / "target/release/wisp"
FIXTURES = ROOT / "tests/fixtures"
MODELS = [FIXTURES / "models" / f"{name}.onnx" for name in ("add", "types", "scale")]

VALUES = {
    "fp32": np.float32([1.5, -2]),
    "fp64": np.float64([1e300, 0.1]),
    "int32": np.int32([2**31 - 1, -2]),
    "int64": np.int64([2**63 - 1, -(2**53) - 1]),
    "uint8": np.uint8([255, 2]),
}
ONE = np.float32([[1, 2, 3, 4]])


def main():
    command = [WISP, "serve", *MODELS, ROOT / "models/digits", "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = server.stdout.readline().split("http://")[1].strip()
        while "digits" not in server.stdout.readline():
            pass
        for module in (tritonclient.http, tritonclient.grpc):
            synchronous(module, url)
        for module in (tritonclient.http.aio, tritonclient.grpc.aio):
            asyncio.run(asynchronous(module, url))
        streaming(url)
        health(url)
    finally:
        server.terminate()
        server.wait()
    print("conformance: all clients are served")


def tensor(module, name, array):
    datatype = "BYTES" if array.dtype == object else name_of(array.dtype)
    input = module.InferInput(name, list(array.shape), datatype)
    input.set_data_from_numpy(array)
    return input


def name_of(dtype):
    kinds = {"f": "FP", "i": "INT", "u": "UINT"}
    return f"{kinds[dtype.kind]}{dtype.itemsize * 8}"


def pair(module, array=ONE):
    return [tensor(module, name, array) for name in ("a", "b")]


def synchronous(module, url):
    client = module.InferenceServerClient(url)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("add") and client.is_model_ready("add", "1")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("add", "7")
    metadata = client.get_server_metadata()
    extensions = metadata["extensions"] if isinstance(metadata, dict) else metadata.extensions
    assert "statistics" in extensions, extensions
    client.get_model_metadata("add")
    client.get_model_config("add")
    assert "add" in str(client.get_model_repository_index())

    result = client.infer("add", pair(module), request_id="7")
    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "7"
    np.testing.assert_array_equal(result.as_numpy("sum"), ONE + ONE)
    wanted = [module.InferRequestedOutput("sum")]
    result = client.infer("add", pair(module), model_version="1", outputs=wanted)
    np.testing.assert_array_equal(result.as_numpy("sum"), ONE + ONE)

    inputs = [tensor(module, name, array) for name, array in VALUES.items()]
    result = client.infer("types", inputs)
    for name, array in VALUES.items():
        np.testing.assert_array_equal(result.as_numpy(f"{name}_out"), array, strict=True)
    rows = np.arange(4096, dtype=np.float32).reshape(1024, 4)
    result = client.infer("scale", [tensor(module, "x", rows)])
    np.testing.assert_array_equal(result.as_numpy("y"), rows * 2)

    photo = (FIXTURES / "photos/seven.png").read_bytes()
    image = tensor(module, "image", np.array([photo], dtype=object))
    assert client.infer("digits", [image]).as_numpy("label")[0] == b"7"

    refused(lambda: client.infer("nobody", pair(module)), "unknown model `nobody`")
    refused(lambda: client.infer("ö" * 9000, pair(module)), "unknown model `ö")
    refused(lambda: client.infer("add", pair(module)[:1]), "input `b` is missing")
    refused(lambda: client.infer("add", pair(module, rows)), "expected shape [1, 4]")
    statistics = str(client.get_inference_statistics("add"))
    assert "inference_count" in statistics, statistics
    pending = [client.async_infer("add", pair(module)) for _ in range(8)] if module is tritonclient.http else []
    for request in pending:
        np.testing.assert_array_equal(request.get_result().as_numpy("sum"), ONE + ONE)
    client.close()


def refused(call, text):
    try:
        call()
    except InferenceServerException as error:
        assert text in error.message(), error
        return
    raise AssertionError(f"it was not refused: {text}")


async def asynchronous(module, url):
    client = module.InferenceServerClient(url)
    assert await client.is_server_live() and await client.is_model_ready("add")
    results = await asyncio.gather(*(client.infer("add", pair(module)) for _ in range(32)))
    for result in results:
        np.testing.assert_array_equal(result.as_numpy("sum"), ONE + ONE)
    await client.close()


def streaming(url):
    module = tritonclient.grpc
    answers = queue.Queue()
    client = module.InferenceServerClient(url)
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(5):
        inputs = pair(module)[: 1 if number == 2 else 2]
        client.async_stream_infer(
            "add", inputs, request_id=str(number), enable_empty_final_response=True
        )
    for number in range(5):
        result, error = answers.get(timeout=30)
        if number == 2:
            assert "input `b` is missing" in error.message(), error
            continue
        response = result.get_response()
        assert response.id == str(number)
        assert response.parameters["triton_final_response"].bool_param
    client.stop_stream()
    zipped = client.infer("add", pair(module), compression_algorithm="gzip")
    np.testing.assert_array_equal(zipped.as_numpy("sum"), ONE + ONE)
    client.close()


def health(url):
    with grpc.insecure_channel(url) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "add"):
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING, service
        try:
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=30)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND, error
        else:
            raise AssertionError("an unknown model is healthy")


if __name__ == "__main__":
    sys.exit(main())
