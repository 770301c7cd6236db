"""Whether an engine's outputs are ONNX Runtime's.

Each has the same shape and type; integers, booleans and strings are equal, and floats differ by
at most 1e-3 of the output's largest magnitude (5e-2 for quantised models, whose rounding differs
from kernel to kernel).
"""

from __future__ import annotations

import numpy as np
import onnx

TOLERANCE, QUANTISED_TOLERANCE = 1e-3, 5e-2
QUANTISED = {"DynamicQuantizeLinear", "QuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul"}


class Disagreement(Exception):
    """Its text says of which output, and how."""


def tolerance_of(path):
    nodes = onnx.load(path).graph.node
    return QUANTISED_TOLERANCE if any(node.op_type in QUANTISED for node in nodes) else TOLERANCE


def largest_difference(outputs, wanted, tolerance):
    """Of all outputs, by each one's largest magnitude."""
    if len(outputs) != len(wanted):
        raise Disagreement(f"{len(outputs)} outputs for {len(wanted)}")
    return max((compare(index, *pair, tolerance) for index, pair in enumerate(zip(outputs, wanted))), default=0.0)


def compare(index, got, want, tolerance):
    if got.shape != want.shape or got.dtype != want.dtype:
        came, due = (f"{array.dtype}{list(array.shape)}" for array in (got, want))
        raise Disagreement(f"output {index} is {came}, not {due}")
    if not np.issubdtype(want.dtype, np.floating):
        if not np.array_equal(got, want):
            raise Disagreement(f"output {index} has other values: {got.ravel()[:4]}, not {want.ravel()[:4]}")
        return 0.0
    largest = float(np.abs(want).max(initial=0)) or 1.0
    difference = float(np.abs(got.astype(np.float64) - want).max(initial=0)) / largest
    # Also where it is no number.
    if not difference <= tolerance:
        raise Disagreement(f"output {index} differs by {difference:.1e} of its largest magnitude")
    return difference
