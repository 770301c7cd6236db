"""A recurrent head over the embeddings of a wake word, of the form that openWakeWord and LiveKit
train: two bidirectional LSTMs of 64 each way, and a score from the last step.

Its weights are drawn, from a fixed seed, as no package was found that has trained ones and a
licence to use them. They are of a size that leaves the gates neither shut nor wide open.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

STEPS, EMBEDDING, HIDDEN = 16, 96, 64


def wake_word_head():
    """The bytes of its .onnx: f32[batch, 16, 96] to a score, f32[batch, 1]."""
    weights = Weights()
    weights.keep("concatenated", np.array([0, 0, 2 * HIDDEN], np.int64))
    weights.keep("last", np.array(STEPS - 1, np.int64))
    weights.draw("score_weights", [1, 2 * HIDDEN], 0.5)
    weights.draw("score_bias", [1], 0.5)
    nodes = [
        helper.make_node("Transpose", ["embeddings"], ["steps"], perm=[1, 0, 2]),
        # Embeddings are some tens, what comes out of an LSTM is below one.
        *lstm(weights, "first", "steps", EMBEDDING, 0.02),
        *lstm(weights, "second", "first", 2 * HIDDEN, 0.25),
        helper.make_node("Gather", ["second", "last"], ["last_step"], axis=0),
        helper.make_node("Gemm", ["last_step", "score_weights", "score_bias"], ["logit"], transB=1),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "wake-word-head-lstm",
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", STEPS, EMBEDDING])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])],
        weights.tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


def lstm(weights, name, source, width, bound):
    """Nodes from [steps, batch, width] to [steps, batch, both directions]."""
    parameters = [f"{name}_{part}" for part in ("input_weights", "hidden_weights", "biases")]
    weights.draw(parameters[0], [2, 4 * HIDDEN, width], bound)
    weights.draw(parameters[1], [2, 4 * HIDDEN, HIDDEN], 0.25)
    weights.draw(parameters[2], [2, 8 * HIDDEN], 0.125)
    by_way, by_row = f"{name}_by_way", f"{name}_by_row"
    return [
        helper.make_node("LSTM", [source, *parameters], [by_way], hidden_size=HIDDEN, direction="bidirectional"),
        helper.make_node("Transpose", [by_way], [by_row], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [by_row, "concatenated"], [name]),
    ]


class Weights:
    def __init__(self):
        self.tensors = []
        self.random = np.random.default_rng(0)

    def draw(self, name, shape, bound):
        self.keep(name, self.random.uniform(-bound, bound, shape).astype(np.float32))

    def keep(self, name, array):
        self.tensors.append(numpy_helper.from_array(array, name))
