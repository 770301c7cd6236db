"""Talks to a process that runs graphs, by JSON lines (engine/examples/engine_probe.rs has the
protocol); whatever it does (crash, hang), the next request finds a live one.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
REFERENCE = "reference"  # ONNX Runtime by its Python API, in a process of its own


class Crashed(Exception):
    """The process ended; its text says how."""


class Hung(Exception):
    """No answer within the limit; the process is killed."""


def probe_binary():
    named = os.environ.get("WISP_ENGINE_PROBE")
    binary = Path(named) if named else REPOSITORY / "target/release/examples/engine_probe"
    if not binary.exists():
        sys.exit(f"{binary} is missing: cargo build --release --locked --workspace --example engine_probe")
    return binary


def command(engine):
    if engine == REFERENCE:
        return [sys.executable, Path(__file__).with_name("reference.py")]
    return [probe_binary()]


class Probe:
    """One engine's process, started when first asked and after it was lost."""

    def __init__(self, engine, limit_s=10.0):
        self.engine = engine
        self.limit_s = limit_s
        self.process = None
        self.stderr = tempfile.TemporaryFile()

    def load(self, path, threads=1):
        """ONNX Runtime's threads are its session's; an engine's are told at each run."""
        return self.ask({"load": str(path), "engine": self.engine, "threads": threads})

    def run(self, graph, inputs, times=1, outputs=None, threads=1):
        request = {"run": graph, "inputs": str(inputs), "times": times, "threads": threads}
        if outputs is not None:
            request["write_outputs"] = str(outputs)
        return self.ask(request)

    def profile(self, graph, inputs, times):
        """What each node took at least, in ns, by operator and node."""
        return self.ask({"profile": graph, "inputs": str(inputs), "times": times})

    def choose(self, path, inputs, tolerance):
        """The engine that an examination would take, and why."""
        return self.ask({"choose": str(path), "inputs": str(inputs), "tolerance": tolerance})

    def unload(self, graph):
        return self.ask({"unload": graph})

    def ask(self, request):
        if self.process is None:
            self.start()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Crashed(self.end()) from None
        return json.loads(self.read_line())

    def read_line(self):
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(self.limit_s):
                    self.end()
                    raise Hung(f"no answer within {self.limit_s:g} s")
                # The pipe is unbuffered: what select saw is all there is.
                part = self.process.stdout.read(1 << 16)
                if not part:
                    raise Crashed(self.end())
                line += part
        return line

    def start(self):
        self.stderr.truncate(0)
        self.process = subprocess.Popen(
            [str(part) for part in command(self.engine)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            bufsize=0,
        )

    def end(self):
        """Ends the process and says how it went."""
        process, self.process = self.process, None
        if process is None:
            return ""
        process.stdin.close()
        try:
            code = process.wait(0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        self.stderr.seek(0)
        said = self.stderr.read().decode(errors="replace").strip().splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{how}: {said[-1]}" if said else how
