"""How soon a started server answers: `make bench-start`. Warm cache, models/imagenet.

Prints medians of some starts: process start to listening, to ready, and to the first label of
a photograph sent as soon as it listens; and the server's resident memory after that.
"""

import statistics
import time

from support import ROOT, Wisp, ask

STARTS = 11


def main():
    photo = (ROOT / "tests/fixtures/photos/cat.jpg").read_bytes()
    runs = [start(photo) for _ in range(STARTS)][1:]  # the first fills the cache
    listening, label, resident = (statistics.median(column) for column in zip(*runs))
    print(f"listening after {listening:.0f} ms, first label after {label:.0f} ms (medians of {len(runs)} starts)")
    print(f"resident memory after the first label: {resident:.0f} MiB")


def start(photo):
    with Wisp(ROOT / "models/imagenet", log="warn") as server:
        status, answer = ask(server.url, "/v2/models/imagenet/infer", photo, {"content-type": "image/jpeg"})
        answered_ms = (time.perf_counter() - server.started) * 1e3
        assert b"tiger cat" in answer and status == 200
        return server.listening_ms, answered_ms, server.resident_mib()


if __name__ == "__main__":
    main()
