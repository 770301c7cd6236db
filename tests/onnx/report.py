"""What a run of the tests prints: shares by suite and engine, then why cases are refused."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict

from probe import REFERENCE

KINDS = ["passed", "refused", "failed", "wrong", "crashed", "hung", "not servable"]
GROUPS = ["inference", "training", "loss"]
REASONS = 30


def print_shares(chosen, outcomes):
    for suite in dict.fromkeys(case.suite for case in chosen):
        print_suite(f"{suite}, all", [i for i, case in enumerate(chosen) if case.suite == suite], outcomes)


def print_all(chosen, engines, outcomes):
    for suite in dict.fromkeys(case.suite for case in chosen):
        picked = [index for index, case in enumerate(chosen) if case.suite == suite]
        print_suite(f"{suite}, all", picked, outcomes)
        for group in GROUPS:
            print_suite(f"{suite}, {group}", [i for i in picked if chosen[i].group == group], outcomes)
    print("auto: the first of the engines that loads the case and agrees with what is expected")
    casts = sum(case.has_casts for case in chosen)
    print(f"{casts} cases have datatypes at the door that the protocol lacks: engines run them with Casts there\n")
    for kind in ("wrong", "crashed", "hung"):
        print_cases(kind, chosen, engines, outcomes)
    for engine in engines:
        print_reasons(engine, chosen, outcomes[engine])
    print_operators(chosen, outcomes)


def print_suite(title, picked, outcomes):
    if not picked:
        return
    print(f"{title}: {len(picked)} cases")
    print("".join([f"{'':14}", *(f"{kind:>14}" for kind in KINDS)]))
    for runner, row in outcomes.items():
        counts = Counter(row[index].kind for index in picked)
        share = f"{100 * counts['passed'] / len(picked):.1f} %"
        cells = [f"{counts['passed']} {share:>7}", *(counts[kind] or "-" for kind in KINDS[1:])]
        name = "ONNX Runtime" if runner == REFERENCE else runner
        print("".join([f"  {name:12}", *(f"{cell:>14}" for cell in cells)]))
    print()


def print_cases(kind, chosen, engines, outcomes):
    for engine in engines:
        found = [(case, got) for case, got in zip(chosen, outcomes[engine]) if got.kind == kind]
        if found:
            print(f"{engine}: {kind}, {len(found)} cases")
            for case, got in found:
                print(f"  {case.suite}/{case.name}: {got.reason[:140]}")
            print()


def print_reasons(engine, chosen, row):
    groups = defaultdict(list)
    for case, got in zip(chosen, row):
        if got.kind in ("refused", "failed"):
            groups[f"{got.kind}: {normalised(got.reason)}"].append(case.name)
    largest = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    print(f"{engine}: refused or failed, by reason ({len(groups)} in all, the {REASONS} largest)")
    for reason, names in largest[:REASONS]:
        print(f"  {len(names):4}  {reason}  ({names[0]})")
    print()


def print_operators(chosen, outcomes):
    """The operators of node tests that no engine passes; expanded cases hold several."""
    lost = Counter()
    for case, got in zip(chosen, outcomes["auto"]):
        if got.kind not in ("passed", "not servable") and len(case.operators) == 1:
            lost[f"{case.operators[0]} ({case.group})" if case.group != "inference" else case.operators[0]] += 1
    print("cases of one operator that no engine passes, by operator")
    print("  " + ", ".join(f"{name} {count}" for name, count in lost.most_common()) + "\n")


def normalised(reason):
    """The reason without what differs from one graph to the next."""
    reason = re.sub(r"\s+", " ", reason)
    reason = re.sub(r"\[[^\[\]]*\]", "[…]", reason)
    reason = re.sub(r"node #\d+ \"[^\"]*\"|`[^`]*`|^\w+: ", "…", reason)
    reason = re.sub(r"(?<![\w.])(?<!element type )-?\d+(\.\d+)?", "n", reason)
    return reason[:160]


def write_details(path, chosen, outcomes):
    details = {
        f"{case.suite}/{case.name}": {
            "group": case.group,
            "operators": case.operators,
            **{runner: [row[index].kind, row[index].reason] for runner, row in outcomes.items()},
        }
        for index, case in enumerate(chosen)
    }
    path.write_text(json.dumps(details, indent=1, ensure_ascii=False))
