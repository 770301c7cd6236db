"""Who sends what to the server that soaks: each actor is a thread that does one kind of thing again
and again, and notes every status that it did not expect and every answer that is not right.
"""

from __future__ import annotations

import http.client
import json
import random
import shutil
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from support import PATIENCE_S, ROOT, pack

PHOTOS = ROOT / "tests/fixtures/photos"
BUSY = ("overloaded", "not-ready", "no-room", "deadline")


def tensors(*names, values=(1, 2, 3, 4)):
    inputs = [{"name": name, "datatype": "FP32", "shape": [1, 4], "data": list(values)} for name in names]
    return json.dumps({"inputs": inputs}).encode()


class Actor(threading.Thread):
    """`act` does the thing once. Pauses are at random, up to `pause_s`."""

    pause_s = 0.02

    def __init__(self, server, number=0):
        super().__init__(daemon=True)
        self.server = server
        self.random = random.Random(f"{type(self).__name__} {number}")
        self.name = type(self).__name__.lower()
        self.statuses = Counter()
        self.wrong = []
        self.unexpected = []
        self.is_over = False
        self.client, self.used = None, 0.0

    def run(self):
        try:
            self.prepare()
            while not self.is_over:
                self.act()
                time.sleep(self.random.random() * self.pause_s)
        except Exception as error:  # told at the end; the others go on
            self.unexpected.append(f"ended by {error!r}")

    def prepare(self):
        pass

    def ask(self, path, body=None, content_type="application/json", method="POST", url=None, expect=(), statuses=()):
        """The answer's body. Its status must be a success, `statuses`, or of a kind in `expect`."""
        # A server ends a connection that idles: not one that is about to be used.
        if self.client and time.monotonic() - self.used > 5:
            self.client.close()
            self.client = None
        if self.client is None or url:
            address = urlsplit(url or self.server.url).netloc
            client = http.client.HTTPConnection(address, timeout=PATIENCE_S)
        else:
            client = self.client
        try:
            client.request(method, path, body, {"content-type": content_type})
            answer = client.getresponse()
            said, kind, status = answer.read(), answer.getheader("wisp-error"), answer.status
        except (http.client.HTTPException, OSError) as error:
            client.close()
            self.client = None
            self.unexpected.append(f"{method} {path}: {error!r}")
            return None
        if url:
            client.close()
        else:
            self.client, self.used = client, time.monotonic()
        self.statuses[f"{status} {kind}" if kind else str(status)] += 1
        if status < 300:
            return said
        if status not in statuses and kind not in expect:
            self.unexpected.append(f"{method} {path}: {status} {kind} {said[:200].decode(errors='replace')}")
        return None

    def check(self, is_right, what):
        if not is_right:
            self.wrong.append(what[:300])


class Bystander(Actor):
    """Asks a model that nobody else touches; every answer must come, and be right."""

    def act(self):
        values = [float(self.random.randrange(1000)) for _ in range(4)]
        answer = self.ask("/v2/models/steady/infer", tensors("x", values=values))
        if answer is not None:
            got = json.loads(answer)["outputs"][0]["data"]
            self.check(got == [value * 2 for value in values], f"{values} doubled is {got}")


class Asker(Actor):
    """Asks some of the models, and after a while others: they may be cold, or about to change."""

    while_s = 10

    def prepare(self):
        sentence = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["A cat on a mat."]}
        text = json.dumps({"inputs": [sentence]}).encode()
        photo = lambda name: (PHOTOS / name).read_bytes()
        self.first_embedding = None
        self.requests = [
            ("digits", photo("seven.png"), "image/png", lambda outputs: outputs["label"][0] == "7"),
            ("imagenet", photo("cat.jpg"), "image/jpeg", lambda outputs: outputs["label"][0] == "tiger cat"),
            ("minilm", text, "application/json", self.is_as_first),
            ("toggled", tensors("a", "b"), "application/json", lambda outputs: outputs["sum"] == [2, 4, 6, 8]),
        ]
        tiny = lambda outputs: outputs["y"] == [2, 4, 6, 8]
        self.requests += [(f"tiny-{number}", tensors("x"), "application/json", tiny) for number in range(TINY)]
        self.some, self.until = [], 0.0

    def is_as_first(self, outputs):
        values = outputs["embedding"]
        self.first_embedding = self.first_embedding or values
        return max(abs(one - other) for one, other in zip(values, self.first_embedding)) < 1e-4

    def act(self):
        if time.monotonic() > self.until:
            self.some, self.until = self.random.sample(self.requests, 3), time.monotonic() + self.while_s
        model, body, kind, is_right = self.random.choice(self.some)
        answer = self.ask(f"/v2/models/{model}/infer", body, kind, expect=BUSY)
        if answer is not None:
            outputs = {output["name"]: output["data"] for output in json.loads(answer)["outputs"]}
            self.check(is_right(outputs), f"{model}: {outputs}")


TINY = 20


class Hostile(Actor):
    """Guests that trap, loop, grow and lie."""

    pause_s = 0.1
    orders = [("behave", 200), ("loop", 504), ("copy", 504), ("panic", 500), ("recurse", 500), ("grow", 500)]
    orders += [("tensors", 500), ("print", 200), ("fail", 500), ("no-output", 500), ("wrong-datatype", 500)]
    orders += [("wrong-length", 500), ("write-and-panic", 500), ("other-graph", 500), ("unsupported", 501)]

    def act(self):
        order, status = self.random.choice(self.orders)
        self.ask("/v2/models/hostile/infer", order.encode(), "text/plain", expect=BUSY, statuses=(status,))


class BadInput(Actor):
    """What no client should send."""

    pause_s = 0.05

    def prepare(self):
        json_body = "application/json"
        self.requests = [
            ("digits/infer", b"\x89PNG\r\n\x1a\n" + b"x" * 50_000, "image/png"),
            ("imagenet/infer", (PHOTOS / "cat.jpg").read_bytes()[:20_000], "image/jpeg"),
            ("steady/infer", b'{"inputs":[' + b"[" * 10_000, json_body),
            ("steady/infer", tensors("x", values=(1, 2)), json_body),
            ("steady/infer", tensors("nothing"), json_body),
            ("steady/infer", b"\xff" * 1000, json_body),
            ("steady/versions/7/infer", tensors("x"), json_body),
            ("nobody/infer", tensors("x"), json_body),
            ("steady/infers", b"", json_body),
        ]

    def act(self):
        path, body, kind = self.random.choice(self.requests)
        if self.ask(f"/v2/models/{path}", body, kind, expect=BUSY, statuses=(400, 404)) is not None:
            # A JPEG that ends early is a picture all the same, if a grey one.
            self.check(path == "imagenet/infer", f"{path} took {body[:30]!r}…")


class Leaver(Actor):
    """A client that goes away: in its head, its body, or before its answer."""

    pause_s = 0.05

    def act(self):
        model, photo, kind = self.random.choice([("imagenet", "cat.jpg", "jpeg"), ("digits", "seven.png", "png")])
        body = (PHOTOS / photo).read_bytes()
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/{kind}\r\n"
        whole = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        address = urlsplit(self.server.url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(whole[: self.random.choice([20, len(whole) // 2, len(whole)])])
            time.sleep(self.random.choice([0, 0.001, 0.01, 0.05]))
        self.statuses["left"] += 1


class Toggler(Actor):
    """Unloads a model and loads it again."""

    pause_s = 1.0

    def act(self):
        for deed in ("unload", "load"):
            self.ask(f"/v2/repository/models/toggled/{deed}", b"{}", expect=BUSY)
            time.sleep(self.random.random() * self.pause_s)


class Deployer(Actor):
    """Deploys versions, each a new guest, moves traffic between them, and takes them out."""

    pause_s = 1.0

    def __init__(self, server, folder):
        super().__init__(server)
        self.folder = folder
        self.number = 0

    def act(self):
        model = f"churn-{self.random.randrange(3)}"
        first, second = (self.deploy(model) for _ in range(2))
        self.is_stamped(model, second)
        traffic = f"/admin/v1/models/{model}/traffic"
        versions = {first[0]: 50, second[0]: 50}
        self.admin(traffic, json.dumps(versions).encode(), "PUT")
        self.admin(traffic, json.dumps({first[0]: 100}).encode(), "PUT")
        self.is_stamped(model, first)
        self.admin(f"/admin/v1/models/{model}/rollback", b"", "POST")
        self.admin("/admin/v1/bundles", self.packed("refused", 'prepare = "fail"'), "PUT", statuses=(422,))
        self.admin(f"/admin/v1/models/{model}", None, "DELETE")
        self.ask(f"/v2/models/{model}/infer", b"stamp", "text/plain", statuses=(404,))

    def deploy(self, model):
        """The version's number and stamp."""
        self.number += 1
        stamp = f"stamp-{self.number}"
        archive = self.packed(model, f'stamp = "{stamp}"')
        said = self.admin(f"/admin/v1/bundles?name={model}&activate=true", archive, "PUT")
        return (json.loads(said)["version"] if said else "0", stamp)

    def packed(self, name, setting):
        bundle = self.folder / "source"
        bundle.mkdir(exist_ok=True)
        shutil.copy(ROOT / "target/guests/hostile.wasm", bundle / "guest.wasm")
        text = f'name = "{name}"\ncomponent = "guest.wasm"\n[settings]\n{setting}\n[limits]\nmemory_mib = 64\n'
        (bundle / "wisp.toml").write_text(text)
        return pack(bundle, self.folder / "churn.wisp")

    def is_stamped(self, model, version):
        answer = self.ask(f"/v2/models/{model}/infer", b"stamp", "text/plain", expect=BUSY)
        if answer is not None:
            got = json.loads(answer)["outputs"][0]["data"][0]
            self.check(got == version[1], f"{model} says {got}, not {version[1]}")

    def admin(self, path, body, method, statuses=()):
        kind = "application/octet-stream" if path.startswith("/admin/v1/bundles") else "application/json"
        return self.ask(path, body, kind, method, self.server.admin, statuses=statuses)


def hostile_bundle(folder: Path):
    bundle = folder / "hostile"
    bundle.mkdir()
    shutil.copy(ROOT / "target/guests/hostile.wasm", bundle / "guest.wasm")
    limits = "[limits]\nmemory_mib = 64\ndeadline_ms = 300\n"
    (bundle / "wisp.toml").write_text(f'component = "guest.wasm"\n{limits}')
    return bundle
