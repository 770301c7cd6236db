"""What the server spends on a request over HTTP: `make bench-http`. Needs wrk.

Serves tests/fixtures/models/scale.onnx (four floats, doubled) on one core, sends it binary
requests from the other for some seconds, and prints requests a second and the server's own
CPU time a request, as the kernel counted it. `health` beside it is the price of HTTP alone.
"""

import struct
import sys

from support import ROOT, Wisp, need, two_cores
from traffic import wrk

SECONDS = 8
CONNECTIONS = 16


def main():
    need("wrk", "taskset")
    server_core, client_core = two_cores()
    with Wisp(ROOT / "tests/fixtures/models/scale.onnx", cores={server_core}, log="warn") as server:
        server.wait_until_ready()
        print(f"resident memory: {server.resident_mib():.0f} MiB")
        for name, path, body in [
            ("health", "/v2/health/live", None),
            ("tiny model, binary", "/v2/models/scale/infer", struct.pack("<4f", 1, 2, 3, 4)),
        ]:
            measure(server, name, path, body, client_core)


def measure(server, name, path, body, core):
    asked = (server.url, path, body, {"Inference-Header-Content-Length": "0"}, CONNECTIONS)
    wrk(*asked, 2, core)  # warm
    before = server.cpu_seconds()
    report = wrk(*asked, SECONDS, core)
    used = server.cpu_seconds() - before
    if report.errors:
        sys.exit(f"bench-http: {name}: {report.errors} requests were not answered")
    print(
        f"{name}: {report.rate:,.0f} requests/s, {used / report.requests * 1e6:.1f} µs of server CPU each "
        f"({CONNECTIONS} connections, one core)"
    )


if __name__ == "__main__":
    main()
