"""The four models as a Python service has them: numpy, Pillow, tokenizers, ONNX Runtime.

`THREADS` is ONNX Runtime's `intra_op_num_threads`; 0 is its default, one a core.
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parent.parent.parent


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("THREADS", "0"))
    return onnxruntime.InferenceSession(ROOT / path, options, providers=["CPUExecutionProvider"])


class Tabular:
    def __init__(self):
        self.session = session("target/zoo/skl-forest.onnx")

    def __call__(self, rows):
        labels, probabilities = self.session.run(None, {"input": np.asarray(rows, np.float32)})
        return labels, probabilities


class Classifier:
    """A photograph's likeliest classes; prepared as models/*/wisp.toml says."""

    def __init__(self, folder, graph, mode, side, crop, mean, std, top_k):
        from PIL import Image

        self.image = Image
        self.session = session(f"models/{folder}/{graph}")
        self.labels = (ROOT / f"models/{folder}/labels.txt").read_text().splitlines()
        self.mode, self.side, self.crop, self.mean, self.std, self.top_k = mode, side, crop, mean, std, top_k

    def __call__(self, file):
        pixels = np.asarray(self.resized(file), np.float32)
        if self.mode == "L":
            # The network was trained on white strokes on black; most people write black on white.
            if np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean() > 128:
                pixels = 255 - pixels
            pixels = pixels[None]
        else:
            pixels = pixels.transpose(2, 0, 1)
        (logits,) = self.session.run(None, {"input": ((pixels - self.mean) / self.std)[None]})
        likely = np.exp(logits[0] - logits[0].max())
        likely /= likely.sum()
        best = np.argsort(-likely)[: self.top_k]
        return [self.labels[index] for index in best], likely[best]

    def resized(self, file):
        image = self.image.open(file).convert(self.mode)
        kept = min(image.size) * self.crop
        left, top = (image.width - kept) / 2, (image.height - kept) / 2
        return image.resize((self.side, self.side), self.image.BICUBIC, (left, top, left + kept, top + kept))


def digits():
    return Classifier("digits", "digits.onnx", "L", 28, 1.0, 33.3285, 78.5655, 3)


def imagenet():
    return Classifier("imagenet", "efficientnet-lite0.onnx", "RGB", 224, 0.875, 127, 128, 5)


class Embedding:
    def __init__(self):
        from tokenizers import BertWordPieceTokenizer

        self.session = session("models/minilm/all-minilm-l6-v2.onnx")
        self.tokenizer = BertWordPieceTokenizer(str(ROOT / "models/minilm/vocab.txt"), lowercase=True)
        self.tokenizer.enable_truncation(256)
        self.tokenizer.enable_padding()

    def __call__(self, texts):
        encoded = self.tokenizer.encode_batch(texts)
        column = lambda name: np.array([getattr(text, name) for text in encoded], np.int64)
        feed = {
            "input_ids": column("ids"),
            "attention_mask": column("attention_mask"),
            "token_type_ids": column("type_ids"),
        }
        return self.session.run(None, feed)[0]


PIPELINES = {"tabular": Tabular, "digits": digits, "imagenet": imagenet, "minilm": Embedding}
