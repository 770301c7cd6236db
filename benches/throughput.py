"""What the server spends on a request over HTTP: `make bench-http`. Needs wrk.

Serves tests/fixtures/models/scale.onnx (four floats, doubled) on one core, sends it binary
requests from the other for some seconds, and prints requests a second and the server's own
CPU time a request, as the kernel counted it. `health` beside it is the price of HTTP alone.
"""

import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 8
CONNECTIONS = 16


def main():
    for tool in ("wrk", "taskset"):
        if not shutil.which(tool):
            sys.exit(f"bench-http: needs {tool} (Debian's packages wrk and util-linux)")
    wisp = ROOT / "target/release/wisp"
    model = ROOT / "tests/fixtures/models/scale.onnx"
    command = ["taskset", "-c", "0", wisp, "serve", model, "--listen", "127.0.0.1:0", "--log", "warn"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://\S+", server.stdout.readline()).group()
        while "scale" not in server.stdout.readline():
            pass
        print(f"resident memory: {resident(server.pid):.0f} MiB")
        for name, path, body in [
            ("health", "/v2/health/live", None),
            ("tiny model, binary", "/v2/models/scale/infer", struct.pack("<4f", 1, 2, 3, 4)),
        ]:
            measure(server.pid, url, name, path, body)
    finally:
        server.terminate()
        server.wait()


def measure(pid, url, name, path, body):
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if body is not None:
            escaped = "".join(f"\\{byte}" for byte in body)
            script.write(f'wrk.method="POST"; wrk.body="{escaped}"\n')
            script.write('wrk.headers["Inference-Header-Content-Length"]="0"\n')
            script.flush()

        def wrk(seconds):
            command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script.name, url + path]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        wrk(2)  # warm
        before = cpu_seconds(pid)
        report = wrk(SECONDS)
        used = cpu_seconds(pid) - before
    if "Non-2xx" in report or "Socket errors" in report:
        sys.exit(f"bench-http: {name}: not every request was answered\n{report}")
    requests = int(re.search(r"(\d+) requests in", report).group(1))
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", report).group(1))
    print(f"{name}: {rate:,.0f} requests/s, {used / requests * 1e6:.1f} µs of server CPU each ({CONNECTIONS} connections, one core)")


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024


if __name__ == "__main__":
    main()
