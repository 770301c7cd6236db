"""Existing clients against a running wisp, as their users call them: `make conformance`.

    python -m conformance [--wisp PROGRAM] [NAME…]

With NAMEs, only the checks whose `client: check` holds one of them. Says what failed, of which
client, and ends with status 1 where something did.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from . import (
    analyzer,
    control,
    embeddings,
    grpc_services,
    kserve_sdk,
    schemas,
    streams,
    triton,
    triton_tensors,
)
from .report import Report
from .server import ROOT, Server, graphs, reference_models

CLIENTS = (
    triton,
    triton_tensors,
    streams,
    control,
    grpc_services,
    embeddings,
    kserve_sdk,
    analyzer,
)


def main():
    parser = argparse.ArgumentParser(prog="conformance")
    parser.add_argument("--wisp", type=Path, default=ROOT / "target/release/wisp")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    report = Report(arguments.names)
    with tempfile.TemporaryDirectory() as folder:
        models = graphs("add", "echo", "int64", "matmul_slow", "scale")
        models += [*reference_models(folder), ROOT / "models/digits", ROOT / "models/minilm"]
        with Server(arguments.wisp, models, "--client-control", "true") as server:
            for client in CLIENTS:
                report.run(client.checks(server.url), server)
        # Servers of their own: one that clients may not change, one whose client changes it
        # without knowing what it does.
        with Server(arguments.wisp, graphs("add")) as server:
            report.run(control.forbidden_checks(server.url), server)
        with Server(arguments.wisp, models, "--client-control", "true") as server:
            report.run(schemas.checks(server.url), server)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
