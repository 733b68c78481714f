"""The experiments' data: text, digits, glyphs and definitions, as `cargo xtask data` unpacks them.

Everything made from them is kept beside them in `prepared/` and carries a digest, so that runs on
different data are never compared.
"""

import functools
import hashlib
import os
import pathlib
from typing import NamedTuple

import numpy as np

VOCABULARY = 4096


def folder(name):
    """Where `cargo xtask data` has put a data set; LOWBIT_DATA is the folder above."""
    above = os.environ.get("LOWBIT_DATA")
    above = pathlib.Path(above) if above else pathlib.Path(__file__).parents[2] / "target/env"
    path = above / f"data-{name}"
    if not (path / "SHA256SUMS").is_file():
        raise FileNotFoundError(f"{path} has no data: run `cargo xtask data {name}`")
    return path


def digest(*parts):
    """The first 16 hexadecimal digits of the SHA-256 of arrays or bytes."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else part)
    return sha.hexdigest()[:16]


def _prepared(source, name, make):
    """The arrays of `make(source)`, made once. Two processes may make them at the same time."""
    path = source / "prepared" / f"{name}.npz"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(scratch, **make(source))
        scratch.replace(path)
    with np.load(path) as arrays:
        return dict(arrays)


class Text(NamedTuple):
    """Token ids, uint16[n], of documents one after the other; splits share no document."""

    train: np.ndarray
    validation: np.ndarray
    digest: str


@functools.cache
def text(vocabulary=VOCABULARY):
    """The RST sources of Python's documentation in a byte-pair encoding of so many tokens.

    One document in 23, chosen by a hash of its name, is for validation; the encoding is trained on
    the others.
    """
    encode = functools.partial(_encode, vocabulary=vocabulary)
    arrays = _prepared(folder("text"), f"bpe{vocabulary}", encode)
    return Text(arrays["train"], arrays["validation"], digest(*arrays.values()))


def _encode(source, vocabulary):
    import tokenizers

    documents = {"train": [], "validation": []}
    root = source / "python-doc"
    for path in sorted(root.rglob("*.txt")):
        name = str(path.relative_to(root)).encode()
        split = "validation" if hashlib.sha256(name).digest()[0] % 23 == 0 else "train"
        documents[split].append(path.read_text(encoding="utf-8"))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<end>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents["train"], trainer)
    end = tokenizer.token_to_id("<end>")
    return {
        split: np.array(
            [i for encoded in tokenizer.encode_batch(texts) for i in (*encoded.ids, end)],
            np.uint16,
        )
        for split, texts in documents.items()
    }


class Images(NamedTuple):
    """Grey images, float32[n, height, width] from 0 to 1, and their classes, int32[n]."""

    train: tuple
    test: tuple
    classes: int
    digest: str


def digits():
    """scikit-learn's handwritten digits, 8 x 8: 1200 to train on, 597 to test."""
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    images, labels = (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1200], order[1200:]
    splits = (images[train], labels[train]), (images[test], labels[test])
    return Images(*splits, 10, digest(images, labels))


CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
GLYPH = 28


def glyphs():
    """Letters and digits of many typefaces, 28 x 28, after the notMNIST recipe.

    One family in three, chosen by a hash of its name, is for testing: no style of it is trained on.
    """
    arrays = _prepared(folder("fonts"), f"glyphs{GLYPH}", _draw)
    images = arrays["images"].astype(np.float32) / 255
    labels, test = arrays["labels"].astype(np.int32), arrays["test"]
    splits = (images[~test], labels[~test]), (images[test], labels[test])
    return Images(*splits, len(CHARACTERS), digest(*arrays.values()))


def _draw(source):
    from fontTools import ttLib
    from PIL import Image, ImageDraw, ImageFont

    images, labels, test, seen = [], [], [], set()
    for path in sorted((source / "faces").iterdir()):
        if path.suffix not in (".ttf", ".otf"):
            continue
        with ttLib.TTFont(path, lazy=True) as face:
            if not set(map(ord, CHARACTERS)) <= set(face.getBestCmap() or ()):
                continue
            family = (face["name"].getDebugName(16) or face["name"].getDebugName(1)).encode()
        font = ImageFont.truetype(str(path), 22, layout_engine=ImageFont.Layout.BASIC)
        for label, character in enumerate(CHARACTERS):
            image = Image.new("L", (GLYPH, GLYPH))
            ImageDraw.Draw(image).text((GLYPH / 2, 21), character, 255, font, anchor="ms")
            pixels = np.asarray(image)
            # Faces share glyphs, and some leave a place empty.
            if not pixels.any() or (label, pixels.tobytes()) in seen:
                continue
            seen.add((label, pixels.tobytes()))
            images.append(pixels)
            labels.append(label)
            test.append(hashlib.sha256(family).digest()[0] % 3 == 0)
    return {
        "images": np.stack(images),
        "labels": np.array(labels, np.uint8),
        "test": np.array(test),
    }


class Definitions(NamedTuple):
    """WordNet's definitions: token ids uint16[n, length], their numbers uint16[n], and the class of
    each, uint8[n]: one of WordNet's 45 lexicographer files."""

    tokens: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    digest: str


def definitions(length):
    """All definitions in MiniLM's tokens, cut to `length`."""
    source = folder("minilm") / "tokenizer.json"
    arrays = _prepared(folder("wordnet"), f"minilm{length}", lambda at: _define(at, source, length))
    return Definitions(**arrays, digest=digest(*arrays.values()))


def _define(source, tokenizer_file, length):
    import tokenizers

    texts, labels = [], []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (source / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue  # the licence
            entry, gloss = line.split(" | ", 1)
            # What follows the definition are examples of use, in quotation marks.
            texts.append(gloss.split('; "')[0].strip())
            labels.append(int(entry.split()[1]))
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encoded = tokenizer.encode_batch(texts)
    return {
        "tokens": np.array([item.ids for item in encoded], np.uint16),
        "lengths": np.array([sum(item.attention_mask) for item in encoded], np.uint16),
        "labels": np.array(labels, np.uint8),
    }
