"""The digit network of digit-recognizer-py: its PyTorch weights to ONNX, without PyTorch.

    python models/digits/convert.py WEIGHTS.pth OUT.onnx

The graph takes `input`, f32 [N, 1, 28, 28], light ink on a dark ground, scaled as
(x / 255 - 0.1307) / 0.3081, and gives `logits`, f32 [N, 10]. The same packages
(models/requirements.txt) give the same bytes, whose sha256 is pinned in models/fetch.py.
"""

import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def main(weights_path, onnx_path):
    model = build_model(read_weights(weights_path))
    onnx.checker.check_model(model)
    onnx.save(model, onnx_path)


def build_model(weights):
    """Three times convolution, ReLU and halving; then two dense layers."""
    nodes = []
    constants = []

    def node(operator, inputs, output, name=None, **attributes):
        nodes.append(helper.make_node(operator, inputs, [output], name=name or output, **attributes))
        return output

    def parameters(layer):
        names = [f"{layer}.weight", f"{layer}.bias"]
        constants.extend(numpy_helper.from_array(weights[name], name) for name in names)
        return names

    value = "input"
    # The gaps are the layers without weights in the package's nn.Sequential.
    for index, layer in enumerate((0, 3, 6)):
        inputs = [value, *parameters(f"conv_layers.{layer}")]
        value = node("Conv", inputs, f"c{index}", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        value = node("Relu", [value], f"r{index}")
        value = node("MaxPool", [value], f"p{index}", kernel_shape=[2, 2], strides=[2, 2])
    value = node("Flatten", [value], "f", axis=1)
    value = node("Gemm", [value, *parameters("fc_layers.0")], "h", transB=1)
    value = node("Relu", [value], "hr")
    node("Gemm", [value, *parameters("fc_layers.2")], "logits", name="o", transB=1)

    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, 28, 28])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
    return helper.make_model(
        helper.make_graph(nodes, "digits", [image], [logits], constants),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )


def read_weights(path):
    """The arrays of a `torch.save` file, by name: a zip of one pickle and a file a storage."""
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise SystemExit(f"{path} is not a torch.save file: it has {len(pickles)} data.pkl, not one")
        with archive.open(pickles[0]) as file:
            return TensorUnpickler(file, archive, pickles[0].removesuffix("data.pkl")).load()


class TensorUnpickler(pickle.Unpickler):
    """Loads tensors and nothing else.

    A pickle may name any callable of any module and have it called, so a weights file can
    run code. The digest in models/fetch.py keeps a changed file out, but this script also
    takes files by hand, and nobody has read the published one: hence a list of what is
    needed, and a refusal of all else.
    """

    DTYPES = {"FloatStorage": np.dtype("<f4")}

    def __init__(self, file, archive, folder):
        super().__init__(file)
        self.archive = archive
        self.folder = folder

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return tensor
        if module == "torch" and name in self.DTYPES:
            return self.DTYPES[name]
        raise pickle.UnpicklingError(f"a weights file has no business with {module}.{name}")

    def persistent_load(self, identifier):
        _kind, dtype, key, _device, _count = identifier
        return np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), dtype)


def tensor(storage, offset, shape, strides, *_gradient):
    """Stands in for torch._utils._rebuild_tensor_v2."""
    # The constructor, not as_strided: it refuses to leave the storage.
    size = storage.itemsize
    return np.ndarray(shape, storage.dtype, storage, offset * size, [stride * size for stride in strides])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: convert.py WEIGHTS.pth OUT.onnx")
    main(sys.argv[1], sys.argv[2])
