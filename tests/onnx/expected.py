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
NOT_RUN = "?"
BAD = "wch"  # worse than to be refused

# What CI runs: half a minute, and no package but those installed (the opset 18 cases are in
# a wheel of their own).
SUBSET_SUITES = ["opset28"]


def read():
    """The engines, and for each suite and case a letter for each of them."""
    try:
        content = json.loads(FILE.read_text())
    except FileNotFoundError:
        return [], {}
    return content.pop("engines"), content


def update(chosen, engines, outcomes):
    """Replaces the letters of the cases and engines that were run, and keeps the others."""
    known_engines, known = read()
    columns = list(dict.fromkeys([*known_engines, *engines]))
    for index, case in enumerate(chosen):
        suite = known.setdefault(case.suite, {})
        letters = dict(zip(known_engines, suite.get(case.name, "")))
        letters.update((engine, LETTERS[outcomes[engine][index].kind]) for engine in engines)
        suite[case.name] = "".join(letters.get(engine, NOT_RUN) for engine in columns)
    parts = [f'"engines": {json.dumps(columns)}']
    for suite in sorted(known):
        rows = (f'"{name}": "{letters}"' for name, letters in sorted(known[suite].items()))
        parts.append(f'"{suite}": {{\n' + ",\n".join(rows) + "\n}")
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    print(f"wrote {FILE.name}: {sum(map(len, known.values()))} cases")


def check(chosen, engines, outcomes):
    """Prints what differs; false if something got worse."""
    known_engines, known = read()
    worse, better = [], []
    for index, case in enumerate(chosen):
        before = dict(zip(known_engines, known.get(case.suite, {}).get(case.name, "")))
        for engine in engines:
            was, got = before.get(engine, NOT_RUN), outcomes[engine][index]
            now = LETTERS[got.kind]
            line = f"  {engine}: {case.suite}/{case.name}: {got.kind} {got.reason[:200]}"
            if was in (now, NOT_RUN):
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
