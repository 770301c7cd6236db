"""Where tract's time goes in each model, by operator: `make bench-profile`.

    operators.py [--models SUBSTRING] [--times 20] [--most 5] [--no-write]

Each model runs so many times with its real input, on one thread; of each node the shortest time
counts, and those of one operator together. Writes PROFILE.md beside it, unless --models or
--no-write is given.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import warnings
from collections import Counter
from pathlib import Path

import models

sys.path[:0] = [str(models.REPOSITORY / folder) for folder in ("benches", "tests/onnx")]
from support import machine  # noqa: E402
from probe import Crashed, Hung, Probe  # noqa: E402

LIMIT_S = 120.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default="", metavar="SUBSTRING")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--most", type=int, default=5, help="operators a model")
    parser.add_argument("--no-write", dest="write", action="store_false")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [
        "# Where tract's time goes",
        "",
        f"`make bench-profile` on {datetime.date.today().isoformat()}: {machine()}; one thread, the least of",
        f"{options.times} runs for each node, shares of their sum, the {options.most} largest.",
        "",
        "| model | µs | operators |",
        "|---|--:|---|",
    ]
    print("\n".join(lines), flush=True)
    for entry in models.entries():
        if options.models in entry.name:
            lines.append(line(entry, options))
            print(lines[-1], flush=True)
    if options.write and not options.models:
        Path(__file__).with_name("PROFILE.md").write_text("\n".join(lines) + "\n")


def line(entry, options):
    path = entry.prepare()
    probe = Probe("tract", LIMIT_S)
    try:
        loaded = probe.load(path)
        if "loaded" not in loaded:
            return f"| {entry.name} | | refused: {loaded['refused']:.80} |"
        ran = probe.profile(loaded["loaded"], entry.inputs_folder, options.times)
    except (Crashed, Hung) as lost:
        return f"| {entry.name} | | lost: {lost} |"
    finally:
        probe.end()
    if "operators" not in ran:
        return f"| {entry.name} | | failed: {ran['failed']:.80} |"
    spent, nodes = Counter(), Counter()
    for name, ns in ran["operators"]:
        operator = name.split(" ")[0]
        spent[operator] += ns
        nodes[operator] += 1
    whole = sum(spent.values())
    shares = [f"{operator} × {nodes[operator]}: {ns / whole:.0%}" for operator, ns in spent.most_common(options.most)]
    return f"| {entry.name} | {whole / 1e3:,.0f} | {', '.join(shares)} |"


if __name__ == "__main__":
    main()
