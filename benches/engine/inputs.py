"""Real things as the models of models.py take them: photos, a printed page, text, a sound.

Each function gives the arrays of a graph's inputs, in its order.
"""

from __future__ import annotations

import re

import numpy as np
import onnxruntime
from PIL import Image

# From the first chapter of "Alice's Adventures in Wonderland" (1865).
TEXT = """Alice was beginning to get very tired of sitting by her sister on the bank, and of
having nothing to do: once or twice she had peeped into the book her sister was reading, but it
had no pictures or conversations in it, "and what is the use of a book," thought Alice, "without
pictures or conversations?" So she was considering in her own mind, as well as she could, for the
hot day made her feel very sleepy and stupid, whether the pleasure of making a daisy-chain would
be worth the trouble of getting up and picking the daisies, when suddenly a White Rabbit with
pink eyes ran close by her. There was nothing so very remarkable in that; nor did Alice think it
so very much out of the way to hear the Rabbit say to itself, "Oh dear! Oh dear! I shall be
late!" When she thought it over afterwards, it occurred to her that she ought to have wondered at
this, but at the time it all seemed quite natural; but when the Rabbit actually took a watch out
of its waistcoat-pocket, and looked at it, and then hurried on, Alice started to her feet, for it
flashed across her mind that she had never before seen a rabbit with either a waistcoat-pocket,
or a watch to take out of it, and burning with curiosity, she ran across the field after it, and
fortunately was just in time to see it pop down a large rabbit-hole under the hedge."""

CLS, SEP = "[CLS]", "[SEP]"

# The loudest pitches of three vowels, in Hz.
AH, EE, OO = (730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240)


def imagenet(path):
    image = Image.open(path).convert("RGB")
    side = round(0.875 * min(image.size))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return [planes((np.asarray(image, np.float32) - 127) / 128)]


def nsfw(path):
    image = Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
    pixels = np.asarray(image.crop((16, 16, 240, 240)), np.float32)
    return [(pixels[:, :, ::-1] - np.array([104, 117, 123], np.float32))[None]]


def faces(path):
    image = Image.open(path).convert("RGB").resize((320, 320), Image.Resampling.BILINEAR)
    return [planes(np.asarray(image, np.float32))]


def page(path):
    """A printed page to find its lines in; multiples of 32, as detectors want."""
    image = Image.open(path).convert("RGB").resize((384, 192), Image.Resampling.BILINEAR)
    return [planes(normalised(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))]


def line(path):
    return [planes(normalised(text_line(path, 320), 0.5, 0.5))]


def short_line(path):
    return [planes(normalised(text_line(path, 192), 0.5, 0.5))]


def text_line(path, width):
    image = Image.open(path).convert("RGB")
    top = 24
    return image.crop((0, top, 24 * width // 48, top + 24)).resize((width, 48), Image.Resampling.BILINEAR)


def normalised(image, mean, deviation):
    pixels = np.asarray(image, np.float32) / 255
    return (pixels - np.array(mean, np.float32)) / np.array(deviation, np.float32)


def planes(pixels):
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)


def digit(path):
    pixels = np.asarray(Image.open(path), np.float32) / 255
    return [((pixels - 0.1307) / 0.3081)[None, None].astype(np.float32)]


def tokens(vocabulary, rows, length):
    """Ids, mask and types; each row is filled by the text, from a word of its own."""
    ids = {piece: index for index, piece in enumerate(vocabulary.read_text().splitlines())}
    words = re.findall(r"\w+|[^\w\s]", TEXT.lower())
    result = []
    for row in range(rows):
        pieces = [piece for word in words[7 * row :] for piece in word_pieces(word, ids)]
        result.append([ids[CLS], *(ids[piece] for piece in pieces[: length - 2]), ids[SEP]])
    result = np.array(result, np.int64)
    return [result, np.ones_like(result), np.zeros_like(result)]


def word_pieces(word, ids):
    """WordPiece: the longest known beginning, then the longest of what is left."""
    pieces, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in ids), None)
        if end is None:
            return ["[UNK]"]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


def file_start_and_end(path):
    """Magika: the first and the last 1024 bytes, without white space around them."""
    content = path.read_bytes()
    start, end = content.lstrip()[:1024], content.rstrip()[-1024:]
    return [np.array([[*start, *end]], np.int32)]


def sound_chunk():
    return [vowel(576)[None], np.zeros((2, 1, 128), np.float32)]


def sound_chunks():
    """Eight chunks of 512 samples, each after the last 64 of the one before."""
    samples = vowel(64 + 8 * 512)
    chunks = np.stack([samples[512 * index :][:576] for index in range(8)])
    state = np.zeros((1, 1, 128), np.float32)
    return [chunks, state, state]


def wake_word_step():
    """80 ms of a stream, after the 30 ms before that its first frame needs."""
    return [phrase()[None, :1760]]


def wake_word_window(mel_model):
    return [windows(mel_model)[:1]]


def wake_word_embeddings(mel_model, embedding_model):
    """Sixteen windows, each 80 ms after the one before."""
    return [run_graph(embedding_model, windows(mel_model)).reshape(1, 16, 96)]


def windows(mel_model):
    """76 frames of 10 ms each, scaled as the embedding takes them."""
    frames = run_graph(mel_model, phrase()[None]).reshape(-1, 32) / 10 + 2
    return np.stack([frames[8 * index :][:76] for index in range(16)])[..., None]


def run_graph(path, array):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: array})
    return output


def phrase():
    """The vowels of "ah-ee-oo-ah" in two seconds, as whole numbers of 16 bits."""
    sound = np.concatenate([vowel(8000, formants) for formants in (AH, EE, OO, AH)])
    return np.round(16000 * sound)


def vowel(length, formants=AH):
    """At 16 kHz: a buzz of 120 Hz, loud about the formants, and some breath."""
    time = np.arange(length) / 16000
    sound = 0.01 * np.random.default_rng(0).standard_normal(length)
    for harmonic in np.arange(120, 4000, 120):
        loud = sum(np.exp(-(((harmonic - formant) / 120) ** 2)) for formant in formants)
        sound += 0.2 * (loud + 0.02) * np.sin(2 * np.pi * harmonic * time)
    return sound.astype(np.float32)
