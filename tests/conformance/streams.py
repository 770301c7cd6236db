"""tritonclient over gRPC's streams, where a request that fails does not end the others."""

import asyncio
import time

import numpy as np

from .triton_client import ONE, Answers, Client, bound, same

REQUESTS = 5
WRONG = 2


def checks(url):
    client = Client("tritonclient.grpc", url)
    for check in (stream, compressed_stream, cancelled):
        yield bound(check, client)
    client.close()
    client = Client("tritonclient.grpc.aio", url)
    yield bound(asynchronous_stream, client)
    client.close()


def inputs_of(client, number):
    inputs = client.inputs(a=ONE, b=ONE * number)
    return inputs[:1] if number == WRONG else inputs


def check_answer(number, result, error):
    if number == WRONG:
        assert error and "input `b` is missing" in error.message(), (result, error)
        return
    assert not error, error
    response = result.get_response()
    assert response.id == str(number), response
    same(result.as_numpy("sum"), ONE + ONE * number)


def stream(client, **options):
    answers = Answers()
    client.start_stream(answers.set, **options)
    for number in range(REQUESTS):
        client.async_stream_infer(
            "add",
            inputs_of(client, number),
            request_id=str(number),
            enable_empty_final_response=True,
        )
    for number in range(REQUESTS):
        result, error = answers.get_both()
        check_answer(number, result, error)
        if result:
            final = result.get_response().parameters["triton_final_response"]
            assert final.bool_param, result.get_response()
    client.stop_stream()


def compressed_stream(client):
    for algorithm in ("gzip", "deflate"):
        stream(client, compression_algorithm=algorithm)


def cancelled(client):
    """A client that goes away takes its requests along."""
    slow = client.inputs(x=np.float32([3]))
    client.start_stream(Answers().set)
    for _ in range(20):
        client.async_stream_infer("matmul_slow", slow)
    client.stop_stream(cancel_requests=True)
    answer = Answers()
    client.async_infer("matmul_slow", slow, answer.set).cancel()
    assert "cancelled" in answer.get_both()[1].message().lower()
    started = time.monotonic()
    same(client.infer("matmul_slow", slow).as_numpy("y"), np.float32([3]))
    seconds = time.monotonic() - started
    assert seconds < 5, f"one request took {seconds:.1f} s after twenty were cancelled"


def asynchronous_stream(client):
    async def requests():
        for number in range(REQUESTS):
            inputs = inputs_of(client, number)
            yield {"model_name": "add", "inputs": inputs, "request_id": str(number)}

    async def talk():
        answers = client.stream_infer(requests())
        for number in range(REQUESTS):
            result, error = await asyncio.wait_for(anext(answers), 30)
            check_answer(number, result, error)

    client.wait(talk())
