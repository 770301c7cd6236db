"""EfficientNet-Lite0, ImageNet-1k: the published PyTorch weights to ONNX, without PyTorch.

    python models/imagenet/convert.py WEIGHTS.pth OUT.onnx

The graph takes `input`, f32 [1, 3, 224, 224], RGB scaled as (x - 127) / 128, and gives
`logits`, f32 [1, 1000]. The same packages (models/requirements.txt) give the same bytes,
whose sha256 is pinned in models/fetch.py: whatever changes a name, an order or an
attribute below changes the digest.
"""

import math
import pickle
import struct
import sys
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE_SIZE = 224
CLASSES = 1000
STEM_CHANNELS = 32
BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class Stage:
    """A row of inverted residual blocks; only the first strides and changes the width."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


# Table 1 of the EfficientNet paper (arXiv 1905.11946); Lite0 keeps B0's widths and drops
# squeeze-and-excite and swish.
STAGES = [
    Stage(blocks=1, kernel=3, stride=1, expansion=1, channels=16),
    Stage(blocks=2, kernel=3, stride=2, expansion=6, channels=24),
    Stage(blocks=2, kernel=5, stride=2, expansion=6, channels=40),
    Stage(blocks=3, kernel=3, stride=2, expansion=6, channels=80),
    Stage(blocks=3, kernel=5, stride=1, expansion=6, channels=112),
    Stage(blocks=4, kernel=5, stride=2, expansion=6, channels=192),
    Stage(blocks=1, kernel=3, stride=1, expansion=6, channels=320),
]


def main(weights_path, onnx_path):
    model = build_model(read_weights(weights_path))
    onnx.checker.check_model(model)
    onnx.save(model, onnx_path)


def build_model(weights):
    graph = GraphBuilder(weights)
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, IMAGE_SIZE, IMAGE_SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])

    value, size = graph.conv("input", "stem", "_conv_stem", "_bn0", IMAGE_SIZE, stride=2)
    channels = STEM_CHANNELS
    index = 0
    for stage in STAGES:
        for position in range(stage.blocks):
            stride = stage.stride if position == 0 else 1
            value, size = inverted_residual(graph, value, size, index, stage, stride, channels)
            channels = stage.channels
            index += 1
    value, size = graph.conv(value, "head", "_conv_head", "_bn1", size)
    value = graph.node("GlobalAveragePool", [value], "pool")
    value = graph.node("Flatten", [value], "flat", axis=1)
    kernel = graph.constant("fc.w", graph.weight("_fc.weight"))
    bias = graph.constant("fc.b", graph.weight("_fc.bias"))
    graph.node("Gemm", [value, kernel, bias], "logits", transB=1)

    unused = set(weights) - graph.used
    if unused:
        raise SystemExit(f"{len(unused)} weights were not used, the first is {min(unused)}")
    return helper.make_model(
        helper.make_graph(graph.nodes, "efficientnet-lite0", [image], [logits], graph.constants),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
        # Not this file's name: the pinned digest was made under this one.
        producer_name="effnet_lite0.py",
    )


def inverted_residual(graph, block_input, size, index, stage, stride, channels):
    """One block: widen by 1x1, filter each channel by itself, narrow by 1x1, add the input."""
    source, name = f"_blocks.{index}", f"b{index}"
    value = block_input
    if stage.expansion != 1:
        value, _ = graph.conv(value, f"{name}_expand", f"{source}._expand_conv", f"{source}._bn0", size)
    value, size = graph.conv(
        value,
        f"{name}_dw",
        f"{source}._depthwise_conv",
        f"{source}._bn1",
        size,
        stride=stride,
        groups=channels * stage.expansion,
    )
    value, _ = graph.conv(
        value, f"{name}_project", f"{source}._project_conv", f"{source}._bn2", size, activation=False
    )
    if stride == 1 and channels == stage.channels:
        value = graph.node("Add", [value, block_input], f"{name}_add")
    return value, size


class GraphBuilder:
    """Collects nodes and constants, and remembers which weights were used."""

    def __init__(self, weights):
        self.weights = weights
        self.used = set()
        self.nodes = []
        self.constants = []
        self.relu6_bounds = [self.constant("zero", np.float32(0)), self.constant("six", np.float32(6))]

    def weight(self, name):
        self.used.add(name)
        return self.weights[name]

    def constant(self, name, array):
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, operator, inputs, name, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def conv(self, value, name, conv, batch_norm, size, stride=1, groups=1, activation=True):
        """A convolution with its batch norm folded in; returns the output and its side."""
        # In f64, so that folding costs no more than the last rounding to f32.
        kernel = self.weight(f"{conv}.weight").astype(np.float64)
        gamma, beta, mean, variance = (
            self.weight(f"{batch_norm}.{part}").astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        self.used.add(f"{batch_norm}.num_batches_tracked")  # counts training steps only
        scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
        folded_kernel = (kernel * scale[:, None, None, None]).astype(np.float32)
        folded_bias = (beta - mean * scale).astype(np.float32)

        # TensorFlow's SAME padding: the odd pixel goes to the bottom and right. The weights
        # were trained so; ONNX's auto_pad says the same but engines support it less.
        side = kernel.shape[2]
        output_size = math.ceil(size / stride)
        padding = max((output_size - 1) * stride + side - size, 0)
        before, after = padding // 2, padding - padding // 2
        output = self.node(
            "Conv",
            [value, self.constant(f"{name}.w", folded_kernel), self.constant(f"{name}.b", folded_bias)],
            name,
            kernel_shape=[side, side],
            strides=[stride, stride],
            group=groups,
            pads=[before, before, after, after],
        )
        if activation:
            output = self.node("Clip", [output, *self.relu6_bounds], f"{name}_relu6")
        return output, output_size


def read_weights(path):
    """The arrays of a `torch.save` file of before PyTorch 1.6, by name.

    Such a file is five pickles (magic number, version, platform, the dict of tensors, the
    storages' keys), then each storage as an i64 count and its raw elements.
    """
    with open(path, "rb") as file:
        magic, version, _platform, tensors, keys = (TensorUnpickler(file).load() for _ in range(5))
        if (magic, version) != (0x1950A86A20F9469CFC6C, 1001):
            raise SystemExit(f"{path} is not a torch.save file of the format before PyTorch 1.6")
        dtypes = {tensor.storage_key: tensor.dtype for tensor in tensors.values()}
        storages = {}
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            storages[key] = np.frombuffer(file.read(count * dtypes[key].itemsize), dtype=dtypes[key])
    return {name: tensor.array(storages[tensor.storage_key]) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies; its storage stands further down in the file."""

    storage_key: str
    dtype: np.dtype
    offset: int
    shape: tuple
    strides: tuple

    def array(self, storage):
        # The constructor, not as_strided: it refuses to leave the storage. Strides matter
        # here, the kernels lie as TensorFlow keeps them.
        size = self.dtype.itemsize
        strides = [stride * size for stride in self.strides]
        return np.ndarray(self.shape, self.dtype, storage, self.offset * size, strides)


class TensorUnpickler(pickle.Unpickler):
    """Loads tensors and nothing else.

    A pickle may name any callable of any module and have it called, so a weights file can
    run code. The digest in models/fetch.py keeps a changed file out, but this script also
    takes files by hand, and nobody has read the published one: hence a list of what is
    needed, and a refusal of all else.
    """

    DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return stored_tensor
        if module == "torch" and name in self.DTYPES:
            return self.DTYPES[name]
        raise pickle.UnpicklingError(f"a weights file has no business with {module}.{name}")

    def persistent_load(self, identifier):
        _kind, dtype, key, _device, _count, _view = identifier
        return key, dtype


def stored_tensor(storage, offset, shape, strides, *_gradient):
    """Stands in for torch._utils._rebuild_tensor_v2."""
    key, dtype = storage
    return StoredTensor(key, dtype, offset, shape, strides)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: convert.py WEIGHTS.pth OUT.onnx")
    main(sys.argv[1], sys.argv[2])
