"""tritonclient: what its users ask of a model; tensors, streams and control are elsewhere."""

import numpy as np

from .server import DATATYPES, FIXTURES
from .triton_client import ONE, checks_of_each, same

EXTENSIONS = """binary_tensor_data classification generate logging model_configuration
    model_repository parameters schedule_policy statistics trace""".split()


def checks(url):
    return checks_of_each(url, lambda client: CHECKS)


def add(client, **options):
    return client.infer("add", client.inputs(a=ONE, b=ONE), **options)


def server_and_models(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("add") and client.is_model_ready("add", "1")
    assert not client.is_model_ready("nobody") and not client.is_model_ready("add", "7")
    metadata = client.ask("get_server_metadata")
    assert metadata["name"] == "wisp" and metadata["version"], metadata
    missing = set(EXTENSIONS) - set(metadata["extensions"])
    assert not missing, f"extensions that are not named: {missing}"


def metadata(client):
    simple = client.ask("get_model_metadata", "simple", "1")
    assert (simple["name"], simple["versions"]) == ("simple", ["1"]), simple
    for side, names in (("inputs", ["INPUT0", "INPUT1"]), ("outputs", ["OUTPUT0", "OUTPUT1"])):
        assert [tensor["name"] for tensor in simple[side]] == names, simple
        for tensor in simple[side]:
            assert tensor["datatype"] == "INT32", tensor
            assert [int(size) for size in tensor["shape"]] == [1, 16], tensor
    every = client.ask("get_model_metadata", "identity")
    assert [tensor["datatype"] for tensor in every["inputs"]] == DATATYPES, every
    assert [int(size) for size in every["outputs"][0]["shape"]] == [-1, 2], every
    client.refused("unknown", "unknown model `nobody`", "get_model_metadata", "nobody")
    client.refused("unknown", "7", "get_model_metadata", "add", "7")


def config(client):
    answer = client.ask("get_model_config", "identity")
    config = answer["config"] if client.is_grpc else answer
    assert config["name"] == "identity", config
    types = [f"TYPE_{name}".replace("BYTES", "STRING") for name in DATATYPES]
    assert [tensor["data_type"] for tensor in config["input"]] == types, config
    assert [tensor["name"] for tensor in config["output"]][0] == "bool_out", config
    assert [int(size) for size in config["input"][0]["dims"]] == [-1, 2], config
    client.refused("unknown", "unknown model `nobody`", "get_model_config", "nobody")


def reference_models(client):
    first, second = np.arange(16, dtype=np.int32)[None], np.full((1, 16), -7, np.int32)
    inputs = client.inputs(INPUT0=first, INPUT1=second)
    result = client.infer("simple", inputs)
    same(result.as_numpy("OUTPUT0"), first + second)
    same(result.as_numpy("OUTPUT1"), first - second)
    result = client.infer("simple", inputs[::-1], outputs=[client.output("OUTPUT1")])
    same(result.as_numpy("OUTPUT1"), first - second)
    assert result.as_numpy("OUTPUT0") is None, "an output that was not asked for"

    def text(array):
        return np.array([[str(value).encode() for value in row] for row in array], object)

    inputs = client.inputs(INPUT0=text(first), INPUT1=text(second))
    result = client.infer("simple_string", inputs)
    same(result.as_numpy("OUTPUT0"), text(first + second))
    same(result.as_numpy("OUTPUT1"), text(first - second))
    words = np.array([[b"", "ö".encode(), b"\0\xff"]], object)
    result = client.infer("simple_identity", client.inputs(INPUT0=words))
    same(result.as_numpy("OUTPUT0"), words)


def photo(client):
    image = np.array([(FIXTURES / "photos/seven.png").read_bytes()], object)
    assert client.infer("digits", client.inputs(image=image)).as_numpy("label")[0] == b"7"


def classification(client):
    scores = np.float32([[0.25, 4, -1, 4], [9, 8, 7, 6]])
    wanted = [["4:1:east", "4:3:west"], ["9:0:north", "8:1:east"]]
    inputs = client.inputs(scores=scores)
    for count, columns in ((1, 1), (2, 2), (9, 4)):
        outputs = [client.output("ranks", class_count=count)]
        got = client.infer("ranked", inputs, outputs=outputs).as_numpy("ranks")
        assert got.shape == (2, columns), got
        for row, wanted_row in zip(got.tolist(), wanted, strict=True):
            # Only the best two are written down above.
            for element, wanted_element in zip(row, wanted_row, strict=False):
                same_class(element.decode(), wanted_element)
    # Without labels, and of an output that has no numbers.
    outputs = [client.output("sum", class_count=1)]
    element = add(client, outputs=outputs).as_numpy("sum")[0, 0].decode()
    same_class(element, "8:3")
    words, outputs = np.array([[b"a"]], object), [client.output("OUTPUT0", class_count=1)]
    inputs = client.inputs(INPUT0=words)
    client.refused("invalid", "OUTPUT0", "infer", "simple_identity", inputs, outputs=outputs)


def same_class(got, wanted):
    value, *names = got.split(":")
    wanted_value, *wanted_names = wanted.split(":")
    assert float(value) == float(wanted_value) and names == wanted_names, (got, wanted)


def ids_and_parameters(client):
    for id in ("7", "ö" * 40):
        response = add(client, request_id=id).get_response()
        assert (response.id if client.is_grpc else response["id"]) == id, response
    # None, and the model's version is told.
    response = add(client, model_version="1").get_response()
    answer = response if client.is_grpc else type("Response", (), response)
    assert answer.model_name == "add" and answer.model_version == "1", response
    assert not getattr(answer, "id", ""), response
    # Parameters that nobody knows are nobody's business.
    result = add(client, parameters={"number": 1.5, "text": "ö", "truth": True, "whole": 2**53 + 1})
    same(result.as_numpy("sum"), ONE + ONE)


def priority_and_timeout(client):
    for priority in (0, 1, 2, 9):
        same(add(client, priority=priority, timeout=30_000_000).as_numpy("sum"), ONE + ONE)
    slow = client.inputs(x=np.float32([3]))
    client.refused("deadline", "matmul_slow", "infer", "matmul_slow", slow, timeout=2000)
    client.refused("invalid", "timeout", "infer", "add", client.inputs(a=ONE, b=ONE), timeout=-1)
    if client.is_grpc:
        client.refused("deadline", "", "infer", "matmul_slow", slow, client_timeout=0.02)
    else:
        inputs = client.inputs(a=ONE, b=ONE)
        client.refused("invalid", "priority", "infer", "add", inputs, priority=-1)
    same(client.infer("matmul_slow", slow).as_numpy("y"), np.float32([3]))


def errors(client):
    inputs = client.inputs(a=ONE, b=ONE)
    client.refused("unknown", "unknown model `nobody`", "infer", "nobody", inputs)
    # Long enough to be compressed, were errors ever so: tritonclient would not read it.
    client.refused("unknown", "unknown model `ö", "infer", "ö" * 9000, inputs)
    client.refused("unknown", "7", "infer", "add", inputs, model_version="7")
    client.refused("invalid", "input `b` is missing", "infer", "add", inputs[:1])
    rows = client.inputs(a=ONE.repeat(9, 0), b=ONE)
    client.refused("invalid", "expected shape [1, 4]", "infer", "add", rows)
    wide = client.inputs(a=ONE.astype(np.float64), b=ONE)
    client.refused("invalid", "FP64", "infer", "add", wide)
    outputs = [client.output("product")]
    client.refused("invalid", "product", "infer", "add", inputs, outputs=outputs)


def many_and_large(client):
    for result in client.infer_many("add", 32, client.inputs(a=ONE, b=ONE)):
        same(result.as_numpy("sum"), ONE + ONE)
    large = np.arange(4 << 20, dtype=np.float32)
    same(client.infer("echo", client.inputs(x=large)).as_numpy("y"), large)


def statistics(client):
    def counts():
        answer = client.ask("get_inference_statistics", "add", "1")["model_stats"]
        assert [(model["name"], model["version"]) for model in answer] == [("add", "1")], answer
        model = answer[0]
        outcomes = model["inference_stats"]
        assert set(outcomes["success"]) >= {"count", "ns"} and int(model["last_inference"]), model
        failed = int(outcomes["fail"].get("count", 0))
        return int(model["inference_count"]), int(outcomes["success"]["count"]), failed

    before = counts()
    for _ in range(3):
        add(client)
    inputs = client.inputs(a=ONE)
    client.refused("invalid", "input `b` is missing", "infer", "add", inputs)
    change = [after - before for before, after in zip(before, counts(), strict=True)]
    assert change == [3, 3, 1], change
    names = {model["name"] for model in client.ask("get_inference_statistics")["model_stats"]}
    assert {"add", "simple", "identity"} <= names, names
    client.refused("unknown", "nobody", "get_inference_statistics", "nobody")


CHECKS = (
    server_and_models,
    metadata,
    config,
    reference_models,
    photo,
    classification,
    ids_and_parameters,
    priority_and_timeout,
    errors,
    many_and_large,
    statistics,
)
