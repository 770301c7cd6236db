"""schemathesis: requests that wisp's own OpenAPI documents allow, and some that they do not."""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

# By its entry point and not by the script that pip made of it: that one names the folder the
# interpreter was installed in, which has moved if the target folder was kept from another clone.
PROGRAM = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
# What a document allows is answered, except that only a model knows which tensors fit it.
DOCUMENTS = {
    "server": ("/openapi.json", ["--exclude-checks=positive_data_acceptance"]),
    "model": ("/v2/models/add/openapi.json", []),
}
CONFIG = Path(__file__).parent.parent / "schemathesis.toml"
OPTIONS = [
    "--seed=1",
    "--max-examples=10",
    "--phases=examples,coverage,fuzzing",
    "--request-timeout=20",
    "--continue-on-failure",
    "--no-color",
    "--warnings=off",
]


def checks(url):
    for name, (path, options) in DOCUMENTS.items():
        bound = partial(fuzz, url, path, options)
        bound.__name__ = f"the {name}'s document"
        yield "schemathesis", bound


def fuzz(url, path, options):
    command = [*PROGRAM, "--config-file", CONFIG, "run", f"http://{url}{path}", "--url", f"http://{url}", *OPTIONS, *options]
    # Where it is run it leaves what it remembers of failures.
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=folder)
    assert run.returncode == 0, f"{run.stdout}{run.stderr}"
