"""KServe's SDK, over REST v2 and over gRPC. It is large: `make conformance-all` installs it."""

import asyncio
import importlib.util
import logging
import subprocess
import sys
from functools import partial

import numpy as np
from tritonclient.utils import np_to_triton_dtype

from .report import Skipped
from .server import FIXTURES
from .triton_client import ONE, same
from .triton_tensors import values


def checks(url):
    if not importlib.util.find_spec("kserve"):
        yield "kserve", not_installed
        return
    for check in (rest, grpc):
        bound = partial(apart, url, check.__name__)
        bound.__name__ = check.__name__
        yield "kserve", bound


def not_installed():
    raise Skipped("it is not installed (make conformance-all installs it)")


def apart(url, check):
    """In a process without tritonclient, whose protocol buffers have the same names."""
    command = [sys.executable, "-m", __name__, url, check]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, f"{run.stdout}{run.stderr}"


def request(model, arrays, binary=True, **options):
    from kserve import InferInput, InferRequest

    inputs = []
    for name, array in arrays.items():
        input = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        input.set_data_from_numpy(array, binary_data=binary)
        inputs.append(input)
    return InferRequest(model, inputs, request_id="7", **options)


def typed():
    """The datatypes that both JSON and gRPC's own fields carry."""
    arrays = values(finite=True)
    return {name: array for name, array in arrays.items() if name not in ("fp16", "bf16")}


def check_answer(response, arrays, texts):
    assert response.id == "7", response.id
    got = {output.name: output.as_numpy() for output in response.outputs}
    assert list(got) == [f"{name}_out" for name in arrays], list(got)
    for name, array in arrays.items():
        if name == "bytes" and texts:
            array = np.array([[text.decode() for text in row] for row in array], object)
        same(got[f"{name}_out"], array)


async def rest(url):
    import httpx
    from kserve import InferenceRESTClient
    from kserve.inference_client import RESTConfig
    from kserve.protocol.infer_type import RequestedOutput

    client, base = InferenceRESTClient(RESTConfig(protocol="v2")), f"http://{url}"
    assert await client.is_server_live(base) and await client.is_server_ready(base)
    assert await client.is_model_ready(base, "add")
    assert not await client.is_model_ready(base, "nobody")
    arrays = typed()
    for binary in (True, False):
        for parameters in (None, {"binary_data_output": True}):
            asked = request("typed", arrays, binary, parameters=parameters)
            response = await client.infer(base, asked, model_name="typed")
            check_answer(response, arrays, texts=True)
    image = {"image": np.array([(FIXTURES / "photos/seven.png").read_bytes()], object)}
    outputs = [RequestedOutput("label", {"binary_data": True})]
    asked = request("digits", image, request_outputs=outputs)
    response = await client.infer(base, asked, model_name="digits")
    assert response.outputs[0].as_numpy()[0] == "7", response
    for model, status, text in (("nobody", 404, "unknown model"), ("add", 400, "input `b`")):
        try:
            await client.infer(base, request(model, {"a": ONE}), model_name=model)
        except httpx.HTTPStatusError as error:
            assert error.response.status_code == status and text in str(error), error
        else:
            raise AssertionError(f"it was not refused: {text}")
    await client.close()


async def grpc(url):
    from grpc import RpcError, StatusCode
    from kserve import InferenceGRPCClient

    async with InferenceGRPCClient(url) as client:
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("add")
        assert not await client.is_model_ready("nobody")
        arrays = typed()
        for binary in (True, False):
            response = await client.infer(request("typed", arrays, binary))
            check_answer(response, arrays, texts=False)
        for model, status in (
            ("nobody", StatusCode.NOT_FOUND),
            ("add", StatusCode.INVALID_ARGUMENT),
        ):
            try:
                await client.infer(request(model, {"a": ONE}))
            except RpcError as error:
                assert error.code() == status, error
            else:
                raise AssertionError(f"it was not refused: {status}")


if __name__ == "__main__":
    # It logs each failure with its trace, those that are asked for too.
    logging.disable(logging.CRITICAL)
    asyncio.run({"rest": rest, "grpc": grpc}[sys.argv[2]](sys.argv[1]))
