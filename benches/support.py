"""What the benches share: a wisp to start, what a process costs, and plain requests.

CPU time is the kernel's clock of each process, to the nanosecond; /proc/PID/stat says the same in
steps of 10 ms.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
WISP = ROOT / "target/release/wisp"
MIB = 1 << 20
PATIENCE_S = 120


class Process:
    """A server, its children and what they cost, while a `with` block runs."""

    def __init__(self, command, cores=None, environment=None, folder=None):
        """On those `cores` only, where given. Its log is kept apart: see `log`."""
        held = ["taskset", "-c", ",".join(map(str, sorted(cores)))] if cores else []
        # Settings in the caller's environment would be this server's too.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WISP_")}
        self._log = tempfile.TemporaryFile("w+")
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [*held, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=clean | (environment or {}),
            cwd=folder,
        )
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            for pid in reversed(self.tree()):
                os.kill(pid, 9)
            self.process.wait()
        self.process.stdout.close()

    def log(self):
        self._log.seek(0)
        return self._log.read()

    def tree(self):
        return tree(self.pid)

    def cpu_seconds(self):
        return sum(cpu_seconds(pid) for pid in self.tree())

    def resident_mib(self):
        """Resident memory of all its processes; what they share counts in each."""
        return sum(status_kib(pid, "VmRSS") for pid in self.tree()) / 1024

    def proportional_mib(self):
        """The same, but what processes share is divided between them."""
        return sum(proportional_kib(pid) for pid in self.tree()) / 1024

    def threads(self):
        return sum(status_kib(pid, "Threads") for pid in self.tree())

    def files(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Wisp(Process):
    """`wisp serve` on free ports. `admin` is the admin API's address, with --state only."""

    def __init__(self, *arguments, cores=None, log="error"):
        arguments = [str(argument) for argument in arguments]
        listen = ["--listen", "127.0.0.1:0", "--log", log]
        if "--state" in arguments:
            listen += ["--admin-listen", "127.0.0.1:0"]
        super().__init__([WISP, "serve", *arguments, *listen], cores)
        try:
            self.url = self._address()
            self.listening_ms = (time.perf_counter() - self.started) * 1e3
            self.admin = self._address() if "--state" in arguments else None
        except BaseException:
            self.stop()
            raise
        # A full pipe would stop it.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def _address(self):
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if not found:
            sys.exit(f"wisp did not start: {line}{self.log()}")
        return found.group()

    def wait_until_ready(self):
        wait_for(lambda: ask(self.url, "/v2/health/ready")[0] == 200)

    def deploy(self, archive, query="activate=true"):
        status, body = self.try_to_deploy(archive, query)
        if status >= 300:
            sys.exit(f"the bundle was not deployed: {status} {body.decode()}")
        return json.loads(body)

    def try_to_deploy(self, archive, query="activate=true"):
        return ask(self.admin, f"/admin/v1/bundles?{query}", archive, method="PUT")

    def live_sandboxes(self):
        return metric(self.url, "wisp_live_sandboxes")


def metric(url, name):
    _, body = ask(url, "/metrics")
    return float(re.search(rf"^{name} (\S+)$", body.decode(), re.MULTILINE).group(1))


def ask(url, path, body=None, headers=(), method=None):
    """One request on a connection of its own: status and body."""
    client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
    try:
        client.request(method or ("GET" if body is None else "POST"), path, body, dict(headers))
        answer = client.getresponse()
        return answer.status, answer.read()
    finally:
        client.close()


def wait_for(is_done, pause_s=0.002):
    """Connections that are refused count as not yet."""
    if not comes_true(is_done, PATIENCE_S, pause_s):
        sys.exit(f"a server was not ready within {PATIENCE_S} s")


def comes_true(is_done, seconds, pause_s=0.002):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if is_done():
                return True
        time.sleep(pause_s)
    return False


def pack(source, archive):
    """The .wisp file of a bundle folder or an .onnx file, as bytes."""
    subprocess.run([WISP, "pack", source, "-o", archive], check=True, stdout=subprocess.DEVNULL)
    return Path(archive).read_bytes()


def tree(pid):
    """The process and all its descendants."""
    found = [pid]
    for parent in found:
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
            for task in tasks:
                found += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
        except FileNotFoundError:
            pass  # it ended just now
    return found


def cpu_seconds(pid):
    try:
        return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
    except OSError:
        return 0.0


def status_kib(pid, field):
    try:
        return int(re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1))
    except (FileNotFoundError, AttributeError):
        return 0


def proportional_kib(pid):
    try:
        return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M).group(1))
    except (FileNotFoundError, ProcessLookupError, AttributeError):
        return 0


def two_cores():
    """A core for the server and one for its clients; this process moves to the second."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("this bench needs two cores: one for the server, one for its clients")
    os.sched_setaffinity(0, {cores[1]})
    return cores[0], cores[1]


def percentile(values, percent):
    """The smallest value that at least so many percent do not exceed; NaN of none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def machine():
    model = platform.machine()
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            model = text.split(":")[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"


def load_average():
    """Of the last minute: a busy machine's figures are worth less."""
    return f"load average {os.getloadavg()[0]:.1f}"


def need(*tools):
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        sys.exit(f"this bench needs {', '.join(missing)} (Debian's packages wrk and util-linux)")


def verdict(is_met):
    return "met" if is_met else "MISSED"
