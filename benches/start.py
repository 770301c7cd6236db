"""How soon a started server answers: `make bench-start`. Warm cache, models/imagenet.

Prints medians of some starts: process start to listening, to ready, and to the first label of
a photograph sent as soon as it listens; and the server's resident memory after that.
"""

import http.client
import re
import statistics
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STARTS = 11


def main():
    photo = (ROOT / "tests/fixtures/photos/cat.jpg").read_bytes()
    runs = [start(photo) for _ in range(STARTS)][1:]  # the first fills the cache
    listening, label, resident = (statistics.median(column) for column in zip(*runs))
    print(f"listening after {listening:.0f} ms, first label after {label:.0f} ms (medians of {len(runs)} starts)")
    print(f"resident memory after the first label: {resident:.0f} MiB")


def start(photo):
    started = time.monotonic()
    command = [ROOT / "target/release/wisp", "serve", ROOT / "models/imagenet", "--listen", "127.0.0.1:0", "--log", "warn"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://(\S+)", server.stdout.readline()).group(1)
        listening = time.monotonic()
        client = http.client.HTTPConnection(address)
        client.request("POST", "/v2/models/imagenet/infer", photo, {"content-type": "image/jpeg"})
        answer = client.getresponse()
        assert b"tiger cat" in answer.read() and answer.status == 200
        answered = time.monotonic()
        status = Path(f"/proc/{server.pid}/status").read_text()
        resident = int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024
        return (listening - started) * 1e3, (answered - started) * 1e3, resident
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
