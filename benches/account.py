"""How much of the server's CPU time its usage accounts for: `make bench-account`.

One model after the other, one request at a time and then several, asks the server what they used
(guests, graphs and the server itself, by `/usage`) and the system what the process did (by
/proc/PID/stat). The two should be the same within 2 %.
"""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from support import PATIENCE_S, ROOT, Wisp, ask, load_average, machine, verdict

GOAL = 0.02
IN_FLIGHT = 4
FIELDS = ("guest_cpu_us", "compute_cpu_us", "server_cpu_us")
TEXT = "a cat on a mat, and a dog that looks at it from afar, as dogs do when cats are on mats " * 4


def requests():
    """Model, body, content type, and how many."""
    photos = ROOT / "tests/fixtures/photos"
    sentence = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
    return [
        ("imagenet", (photos / "cat.jpg").read_bytes(), "image/jpeg", 200),
        ("minilm", json.dumps({"inputs": [sentence]}).encode(), "application/json", 200),
        ("digits", (photos / "seven.png").read_bytes(), "image/png", 4000),
    ]


def main():
    print(f"{machine()}, {load_average()}")
    print(f"{'model':10} {'in flight':>9} {'guest':>8} {'graph':>8} {'server':>8} {'system':>8}   µs of CPU a request")
    with Wisp(*(ROOT / "models" / model for model, *_ in requests())) as server:
        server.wait_until_ready()
        for model, body, content_type, count in requests():
            for in_flight in (1, IN_FLIGHT):
                measure(server, (model, body, content_type), count, in_flight)


def measure(server, request, count, in_flight):
    with ThreadPoolExecutor(in_flight) as clients:
        list(clients.map(lambda _: send(server, request, 20), range(in_flight)))
        used, spent = usage(server, request[0]), server.cpu_seconds()
        list(clients.map(lambda _: send(server, request, count // in_flight), range(in_flight)))
        time.sleep(0.05)  # for what comes after the last answer
        spent, now = server.cpu_seconds() - spent, usage(server, request[0])
    each = [(after - before) / count for after, before in zip(now, used)]
    share = sum(each) * count / (spent * 1e6)
    columns = " ".join(f"{figure:8.0f}" for figure in [*each, spent * 1e6 / count])
    print(f"{request[0]:10} {in_flight:9} {columns}   {share:.1%} {verdict(abs(share - 1) <= GOAL)}")


def send(server, request, count):
    model, body, content_type = request
    client = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=PATIENCE_S)
    for _ in range(count):
        client.request("POST", f"/v2/models/{model}/infer", body, {"content-type": content_type})
        answer = client.getresponse()
        text = answer.read()
        assert answer.status == 200, text
    client.close()


def usage(server, model):
    _, answer = ask(server.url, "/usage")
    records = [record for record in json.loads(answer)["usage"] if record["model"] == model]
    return [sum(record[field] for record in records) for field in FIELDS]


if __name__ == "__main__":
    main()
