"""A wisp to speak to, with the models that the clients ask for. What clients ask is elsewhere."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "tests/fixtures"
GUESTS = ROOT / "target/guests"

DATATYPES = (
    "BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 BF16 FP32 FP64 BYTES".split()
)
START_SECONDS = 120


class Server:
    """Listens on a free port while its `with` block runs."""

    def __init__(self, program, models, *options):
        """Serves `models`, which are paths, with command line `options`."""
        command = [program, "serve", *models, "--listen", "127.0.0.1:0", *options]
        self._log = tempfile.TemporaryFile("w+")
        # Settings in the caller's environment would be this server's too.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WISP_")}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=clean
        )
        self.url = ""

    def __enter__(self):
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait_until_ready(self):
        line = self._process.stdout.readline()
        address = re.search(r"http://(\S+)", line)
        if not address:
            raise RuntimeError(f"wisp did not start: {line}{self.log_end()}")
        self.url = address[1]
        end = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"wisp did not become ready:\n{self.log_end()}")
            time.sleep(0.05)
        # A server serves on without the models that it cannot load.
        with self._open("/v2/repository/index", b"") as answer:
            lost = [model for model in json.load(answer) if model["state"] != "READY"]
        if lost:
            raise RuntimeError(f"wisp serves without some of its models: {lost}")

    def _is_ready(self):
        try:
            with self._open("/v2/health/ready"):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return False

    def _open(self, path, body=None):
        return urllib.request.urlopen(f"http://{self.url}{path}", body, timeout=30)

    def log_end(self, lines=20):
        self._log.seek(0)
        return "".join(self._log.readlines()[-lines:])

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


def graphs(*names):
    return [FIXTURES / "models" / f"{name}.onnx" for name in names]


def reference_models(folder):
    """The reference servers' own small models, and identities over every datatype."""
    every = {name: f"{name.lower()} {name.lower()}_out {name} -1,2" for name in DATATYPES}
    typed = [tensor for name, tensor in every.items() if name not in ("FP16", "BF16")]
    return [
        *graphs("simple"),
        fixture(folder, "simple_string"),
        fixture(folder, "simple_identity"),
        identity(folder, "identity", every.values()),
        identity(folder, "typed", typed),
        identity(folder, "ranked", ["scores ranks FP32 -1,4"], labels="ranks"),
    ]


def fixture(folder, name):
    """A bundle of the reference guest whose manifest is among the fixtures."""
    bundle = Path(shutil.copytree(FIXTURES / "models" / name, Path(folder) / name))
    shutil.copy(GUESTS / "reference.wasm", bundle / "guest.wasm")
    return bundle


def identity(folder, name, tensors, labels=None):
    """A bundle that gives back `tensors`; its output `labels` has four classes with names."""
    bundle = Path(folder) / name
    bundle.mkdir()
    shutil.copy(GUESTS / "reference.wasm", bundle / "guest.wasm")
    manifest = ['component = "guest.wasm"']
    if labels:
        (bundle / "labels.txt").write_text("north\neast\nsouth\nwest\n")
        manifest += ['assets = ["labels.txt"]', "[labels]", f'{labels} = "labels.txt"']
    manifest += ["[settings]", 'kind = "identity"', f'tensors = "{"; ".join(tensors)}"']
    (bundle / "wisp.toml").write_text("\n".join(manifest) + "\n")
    return bundle
