"""tritonclient: what changes the server, where `client-control` lets its clients do so."""

import numpy as np

from .triton_client import checks_of_each, same

# The server's own before anybody changes them.
TRACE = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
LOG = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


def checks(url):
    return checks_of_each(url, lambda client: (repository, trace, logging))


def forbidden_checks(url):
    return checks_of_each(url, lambda client: (forbidden,))


def index(client):
    answer = client.ask("get_model_repository_index")
    models = answer["models"] if client.is_grpc else answer
    return {model["name"]: model for model in models}


def repository(client):
    numbers = np.int64([1, 2**53])
    inputs = client.inputs(x=numbers)
    assert {model["state"] for model in index(client).values()} == {"READY"}, index(client)
    client.unload_model("int64")
    try:
        assert not client.is_model_ready("int64")
        entry = index(client)["int64"]
        assert entry["state"] == "UNAVAILABLE" and "unloaded" in entry["reason"], entry
        client.refused("not ready", "int64", "infer", "int64", inputs)
        # Twice is as good as once; and the others serve on.
        client.unload_model("int64", unload_dependents=True)
        assert client.is_model_ready("add")
    finally:
        client.load_model("int64")
    # Loading waits until it is loaded.
    assert client.is_model_ready("int64")
    assert index(client)["int64"]["state"] == "READY", index(client)
    same(client.infer("int64", inputs).as_numpy("y"), numbers + 1)
    client.load_model("int64")

    client.refused("unknown", "nobody", "load_model", "nobody")
    client.refused("unknown", "nobody", "unload_model", "nobody")
    client.refused("unsupported", "config", "load_model", "add", config='{"backend": "x"}')
    files = {"file:1/model.onnx": b"\x08\x07"}
    client.refused("unsupported", "", "load_model", "add", config="{}", files=files)
    assert client.is_model_ready("add")


def trace_settings(client, method, *arguments, **options):
    answer = client.ask(method, *arguments, **options)
    if not client.is_grpc:
        return answer
    lists = {name: setting.get("value", []) for name, setting in answer["settings"].items()}
    single = {name: value[0] if value else "" for name, value in lists.items()}
    return single | {"trace_level": lists["trace_level"]}


def trace(client):
    def get(model=None):
        return trace_settings(client, "get_trace_settings", model)

    def update(settings, model=None):
        return trace_settings(client, "update_trace_settings", model, settings)

    assert get() == get("add") == TRACE, (get(), get("add"))
    try:
        changed = TRACE | {"trace_level": ["TIMESTAMPS"], "trace_rate": "500"}
        assert update({"trace_level": ["TIMESTAMPS"], "trace_rate": "500"}) == changed
        assert get("add") == changed, get("add")
        assert update({"trace_rate": "7", "trace_count": "2"}, "add") == changed | {
            "trace_rate": "7",
            "trace_count": "2",
        }
        assert get() == changed, get()
        assert update({"trace_rate": None, "trace_count": None}, "add") == changed
    finally:
        update({name: None for name in ("trace_level", "trace_rate")})
    assert get() == get("add") == TRACE, (get(), get("add"))

    def refused(kind, settings, model=None):
        options = {"model_name": model, "settings": settings}
        client.refused(kind, "", "update_trace_settings", **options)

    refused("unsupported", {"trace_level": ["TENSORS"]})
    for settings in (
        {"trace_level": ["EVERYTHING"]},
        {"trace_rate": "often"},
        {"trace_file": "/tmp/trace"},
        {"trace_mode": "opentelemetry"},
        {"trace_colour": "red"},
    ):
        refused("invalid", settings)
    refused("unknown", {"trace_rate": "1"}, "nobody")
    client.refused("unknown", "nobody", "get_trace_settings", "nobody")
    assert get() == TRACE, get()


def log_settings(client, method, *arguments):
    answer = client.ask(method, *arguments)
    if not client.is_grpc:
        return answer
    # Each is one of several fields, named by its type.
    return {name: next(iter(value.values())) for name, value in answer["settings"].items()}


def logging(client):
    def update(settings):
        return log_settings(client, "update_log_settings", settings)

    assert log_settings(client, "get_log_settings") == LOG
    try:
        changes = {"log_verbose_level": 1, "log_info": False}
        assert update(changes) == LOG | changes
        assert log_settings(client, "get_log_settings") == LOG | changes
    finally:
        update({"log_verbose_level": 0, "log_info": True})
    assert log_settings(client, "get_log_settings") == LOG
    client.refused("invalid", "log_file", "update_log_settings", {"log_file": "/tmp/log"})
    client.refused("invalid", "log_format", "update_log_settings", {"log_format": "morse"})
    client.refused("invalid", "log_colour", "update_log_settings", {"log_colour": True})
    assert log_settings(client, "get_log_settings") == LOG


def forbidden(client):
    """Without `client-control` they may look and not touch."""
    client.refused("forbidden", "", "load_model", "add")
    client.refused("forbidden", "", "unload_model", "add")
    client.refused("forbidden", "", "update_trace_settings", settings={"trace_rate": "1"})
    client.refused("forbidden", "", "update_trace_settings", "add", {"trace_rate": "1"})
    client.refused("forbidden", "", "update_log_settings", {"log_info": False})
    assert index(client)["add"]["state"] == "READY", index(client)
    assert trace_settings(client, "get_trace_settings") == TRACE
    assert log_settings(client, "get_log_settings") == LOG
