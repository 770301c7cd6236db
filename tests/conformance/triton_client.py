"""tritonclient's four clients behind one face, so that one check asks all of them the same."""

import asyncio
import importlib
import queue
from functools import partial

import numpy as np
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

NAMES = ("tritonclient.http", "tritonclient.http.aio", "tritonclient.grpc", "tritonclient.grpc.aio")

ONE = np.float32([[1, 2, 3, 4]])

# What a refused request is told, over HTTP and over gRPC.
STATUSES = {
    "invalid": ("400", "INVALID_ARGUMENT"),
    "forbidden": ("403", "PERMISSION_DENIED"),
    "unknown": ("404", "NOT_FOUND"),
    "unsupported": ("501", "UNIMPLEMENTED"),
    "not ready": ("503", "UNAVAILABLE"),
    "deadline": ("504", "DEADLINE_EXCEEDED"),
}


class Client:
    """Its methods are those of `InferenceServerClient`; the asynchronous ones are waited for."""

    def __init__(self, name, url):
        self.name, self.url = name, url
        self.module = importlib.import_module(name)
        self.is_grpc = ".grpc" in name
        self.is_aio = name.endswith(".aio")
        self._loop = asyncio.new_event_loop() if self.is_aio else None
        self._client = self.wait(self._connect(url)) if self.is_aio else self._make(url)

    async def _connect(self, url):
        return self._make(url)

    def _make(self, url):
        return self.module.InferenceServerClient(url)

    def wait(self, awaitable):
        return self._loop.run_until_complete(awaitable)

    def __getattr__(self, method):
        function = getattr(self._client, method)
        return partial(self._call, function) if self.is_aio else function

    def _call(self, function, *arguments, **options):
        answer = function(*arguments, **options)
        return self.wait(answer) if asyncio.iscoroutine(answer) else answer

    def ask(self, method, *arguments, **options):
        """The answer as it is in JSON, which over gRPC leaves out zeroes and empty lists."""
        form = {"as_json": True} if self.is_grpc else {}
        return getattr(self, method)(*arguments, **options, **form)

    def infer_many(self, model, count, inputs):
        """`count` requests at a time."""
        if self.is_aio:
            requests = (self._client.infer(model, inputs) for _ in range(count))
            return self.wait(gather(requests))
        if self.is_grpc:
            answers = [Answers() for _ in range(count)]
            for answer in answers:
                self._client.async_infer(model, inputs, answer.set)
            return [answer.get() for answer in answers]
        requests = [self._client.async_infer(model, inputs) for _ in range(count)]
        return [request.get_result() for request in requests]

    def input(self, name, array, **form):
        input = self.module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        input.set_data_from_numpy(array, **form)
        return input

    def inputs(self, **arrays):
        return [self.input(name, array) for name, array in arrays.items()]

    def output(self, name, **form):
        return self.module.InferRequestedOutput(name, **form)

    def refused(self, kind, text, method, *arguments, **options):
        """Asks for what the server must refuse, and say `text` about it."""
        try:
            getattr(self, method)(*arguments, **options)
        except InferenceServerException as error:
            status = error.status().removeprefix("StatusCode.")
            assert status == STATUSES[kind][self.is_grpc], f"{status}, not {kind}: {error}"
            assert text in error.message(), error
            return
        raise AssertionError(f"{method}{arguments} {options} was not refused as {kind}")


async def gather(requests):
    return await asyncio.gather(*requests)


class Answers:
    """What tritonclient.grpc calls back with."""

    def __init__(self):
        self._queue = queue.Queue()

    def set(self, result, error):
        self._queue.put((result, error))

    def get_both(self):
        return self._queue.get(timeout=30)

    def get(self):
        result, error = self.get_both()
        if error:
            raise error
        return result


def same(got, wanted):
    """The bits too: equality alone takes -0 for 0 and no NaN for another."""
    np.testing.assert_array_equal(got, wanted, strict=True)
    assert got.dtype == object or got.tobytes() == wanted.tobytes(), (got, wanted)


def checks_of_each(url, choose):
    """The checks that `choose` gives for each client, bound to it."""
    for name in NAMES:
        client = Client(name, url)
        for check in choose(client):
            yield bound(check, client)
        client.close()


def bound(check, client):
    function = partial(check, client)
    function.__name__ = check.__name__
    return client.name, function
