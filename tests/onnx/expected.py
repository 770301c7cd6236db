"""expected.json: the outcome of every case by engine, and what a change of them means."""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).with_name("expected.json")
LETTERS = {
    "passed": "p",
    "refused": "r",
    "failed": "f",
    "wrong": "w",
    "crashed": "c",
    "hung": "h",
    "not servable": "-",
}
BAD = "wch"  # worse than to be refused

# What CI runs: the newest tests, without the expanded ones (plain operators once more).
SUBSET_SUITES = ["opset28"]


def is_in_subset(case):
    return case.group == "inference" and "_expanded" not in case.name


def letters(engines, outcomes, index):
    return {engine: LETTERS[outcomes[engine][index].kind] for engine in engines}


def read():
    try:
        return json.loads(FILE.read_text())
    except FileNotFoundError:
        return {}


def update(chosen, engines, outcomes):
    """Replaces the entries of the cases and engines that were run, and keeps the others."""
    known = read()
    for index, case in enumerate(chosen):
        entry = known.setdefault(case.suite, {}).setdefault(case.name, {})
        entry.update(letters(engines, outcomes, index))
    lines = []
    for suite in sorted(known):
        rows = (f'    "{name}": {json.dumps(known[suite][name], sort_keys=True)}' for name in sorted(known[suite]))
        lines.append(f'  "{suite}": {{\n' + ",\n".join(rows) + "\n  }")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {FILE.name}: {sum(map(len, known.values()))} cases")


def check(chosen, engines, outcomes):
    """Prints what differs; false if something got worse."""
    known, worse, better = read(), [], []
    for index, case in enumerate(chosen):
        before = known.get(case.suite, {}).get(case.name, {})
        for engine, now in letters(engines, outcomes, index).items():
            was = before.get(engine)
            got = outcomes[engine][index]
            line = f"  {engine}: {case.suite}/{case.name}: {got.kind} {got.reason[:200]}"
            if was == now or was is None:
                continue
            if was == "p" or (now in BAD and was not in BAD):
                worse.append(line)
            elif now == "p":
                better.append(line)
    for title, lines in (("newly passing (--update notes it)", better), ("worse than before", worse)):
        if lines:
            print(f"{title}: {len(lines)}", *lines, sep="\n")
    if not worse:
        print("no case is worse than before")
    return not worse
