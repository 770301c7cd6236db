"""all-MiniLM-L6-v2: the published safetensors weights to ONNX, without PyTorch, pooling included.

    python models/minilm/convert.py WEIGHTS.safetensors OUT.onnx

The graph takes `input_ids`, `attention_mask` and `token_type_ids`, i64 [batch, sequence] of at
most 512 positions, and gives `sentence_embedding`, f32 [batch, 384]: the mean over the positions
that the mask keeps, at length 1, as sentence-transformers has it. The same packages
(models/requirements.txt) give the same bytes, whose sha256 is pinned in models/fetch.py:
whatever changes a name, an order or an attribute below changes the digest.
"""

import json
import math
import struct
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# The package's config.json.
LAYERS = 6
HEADS = 12
WIDTH = 384
LAYER_NORM_EPSILON = 1e-12

# In the weights, and no part of a sentence embedding.
UNUSED = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}


def main(weights_path, onnx_path):
    model = build_model(read_weights(weights_path))
    onnx.checker.check_model(model)
    onnx.save(model, onnx_path)


def build_model(weights):
    graph = GraphBuilder(weights)
    mask = graph.node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
    value = embeddings(graph)
    hidden = attention_bias(graph, mask)
    for layer in range(LAYERS):
        value = encoder_layer(graph, layer, value, hidden)
    pool(graph, value, mask)
    left = set(weights) - graph.used - UNUSED
    if left:
        raise SystemExit(f"the graph has no place for {sorted(left)}")

    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    sequence = ["batch", "sequence"]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "all-MiniLM-L6-v2",
            [helper.make_tensor_value_info(name, TensorProto.INT64, sequence) for name in inputs],
            [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", WIDTH])],
            list(graph.constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def embeddings(graph):
    """Words, positions and types, added up and normalised."""
    words = graph.node(
        "Gather", [graph.weight("embeddings.word_embeddings.weight"), "input_ids"], "words"
    )
    types = graph.weight("embeddings.token_type_embeddings.weight")
    types = graph.node("Gather", [types, "token_type_ids"], "types")
    shape = graph.node("Shape", ["input_ids"], "shape")
    length = graph.node("Slice", [shape, graph.integers(1), graph.integers(2)], "length")
    positions = graph.weight("embeddings.position_embeddings.weight")
    positions = graph.node(
        "Slice", [positions, graph.integers(0), length, graph.integers(0)], "positions"
    )
    value = graph.node("Add", [words, types], "words_types")
    value = graph.node("Add", [value, positions], "words_types_positions")
    return graph.layer_norm(value, "embeddings.LayerNorm", "embeddings")


def attention_bias(graph, mask):
    """What is added to the attention's scores: nothing, or so little that no attention is left."""
    mask = graph.node("Unsqueeze", [mask, graph.integers(1, 2)], "mask_by_head")
    hidden = graph.node("Sub", [graph.number(1.0), mask], "hidden")
    return graph.node("Mul", [hidden, graph.number(-1e9)], "attention_bias")


def encoder_layer(graph, layer, value, bias):
    prefix = f"encoder.layer.{layer}."
    name = f"layer{layer}."
    attended = attention(graph, value, bias, prefix + "attention.self.", name)
    attended = graph.dense(attended, prefix + "attention.output.dense", name + "attention.dense")
    value = graph.node("Add", [attended, value], name + "attention.sum")
    value = graph.layer_norm(value, prefix + "attention.output.LayerNorm", name + "attention")

    wide = graph.dense(value, prefix + "intermediate.dense", name + "wide")
    narrow = graph.dense(gelu(graph, wide, name + "gelu"), prefix + "output.dense", name + "narrow")
    value = graph.node("Add", [narrow, value], name + "sum")
    return graph.layer_norm(value, prefix + "output.LayerNorm", name + "output")


def attention(graph, value, bias, prefix, name):
    by_head = graph.integers(0, 0, HEADS, WIDTH // HEADS)

    def heads(kind, order):
        split = graph.node(
            "Reshape", [graph.dense(value, prefix + kind, name + kind), by_head], f"{name}{kind}.heads"
        )
        return graph.node("Transpose", [split], f"{name}{kind}.turned", perm=order)

    query, key = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1])
    scores = graph.node("MatMul", [query, key], name + "scores")
    scale = graph.number(1 / math.sqrt(WIDTH // HEADS))
    scores = graph.node("Mul", [scores, scale], name + "scores.scaled")
    scores = graph.node("Add", [scores, bias], name + "scores.masked")
    weights = graph.node("Softmax", [scores], name + "attention.weights", axis=-1)
    mixed = graph.node("MatMul", [weights, heads("value", [0, 2, 1, 3])], name + "mixed")
    mixed = graph.node("Transpose", [mixed], name + "mixed.turned", perm=[0, 2, 1, 3])
    return graph.node("Reshape", [mixed, graph.integers(0, 0, WIDTH)], name + "mixed.joined")


def gelu(graph, value, name):
    """x / 2 · (1 + erf(x / √2)), exactly: BERT's is not the one with tanh."""
    scaled = graph.node("Mul", [value, graph.number(1 / math.sqrt(2))], name + ".scaled")
    erf = graph.node("Erf", [scaled], name + ".erf")
    gate = graph.node("Add", [erf, graph.number(1.0)], name + ".gate")
    half = graph.node("Mul", [value, graph.number(0.5)], name + ".half")
    return graph.node("Mul", [half, gate], name)


def pool(graph, value, mask):
    """The mean of what the mask keeps, at length 1. The floors are against a division by zero."""
    kept = graph.node(
        "Mul", [value, graph.node("Unsqueeze", [mask, graph.integers(2)], "mask_by_width")], "kept"
    )
    total = graph.node("ReduceSum", [kept, graph.integers(1)], "total", keepdims=0)
    count = graph.node("ReduceSum", [mask, graph.integers(1)], "count", keepdims=1)
    count = graph.node("Clip", [count, graph.number(1e-9)], "count.floored")
    mean = graph.node("Div", [total, count], "mean")
    squares = graph.node(
        "ReduceSum",
        [graph.node("Mul", [mean, mean], "squared"), graph.integers(1)],
        "squares",
        keepdims=1,
    )
    length = graph.node(
        "Clip", [graph.node("Sqrt", [squares], "norm"), graph.number(1e-12)], "norm.floored"
    )
    graph.node("Div", [mean, length], "sentence_embedding")


class GraphBuilder:
    """Collects nodes and constants; remembers which weights have found their place."""

    def __init__(self, weights):
        self.weights = weights
        self.used = set()
        self.nodes = []
        self.constants = {}

    def node(self, operator, inputs, output, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def dense(self, value, layer, output):
        transposed = self.weight(layer + ".weight", transposed=True)
        product = self.node("MatMul", [value, transposed], output + ".product")
        return self.node("Add", [product, self.weight(layer + ".bias")], output)

    def layer_norm(self, value, layer, output):
        inputs = [value, self.weight(layer + ".weight"), self.weight(layer + ".bias")]
        return self.node("LayerNormalization", inputs, output, axis=-1, epsilon=LAYER_NORM_EPSILON)

    def weight(self, name, transposed=False):
        self.used.add(name)
        array = self.weights[name]
        return self.constant(name, array.T if transposed else array)

    def integers(self, *values):
        return self.constant("integers." + ".".join(map(str, values)), np.array(values, np.int64))

    def number(self, value):
        return self.constant(f"number.{value:.6g}", np.array(value, np.float32))

    def constant(self, name, array):
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name


def read_weights(path):
    """The arrays of a safetensors file, by name: a length, a header in JSON, then the data."""
    dtypes = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
    with open(path, "rb") as file:
        content = file.read()
    (length,) = struct.unpack_from("<Q", content)
    start = 8 + length
    weights = {}
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            array = np.frombuffer(content[start + begin : start + end], dtypes[entry["dtype"]])
            weights[name] = array.reshape(entry["shape"])
    return weights


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: convert.py WEIGHTS.safetensors OUT.onnx")
    main(sys.argv[1], sys.argv[2])
