"""The experiments' data: real text, digits and glyphs, from packages that `cargo xtask data` unpacks.

Everything made from them is kept beside them in `prepared/` and carries a digest, so that runs on
different data are never compared.
"""

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


def text():
    """The RST sources of Python's documentation in a byte-pair encoding of 4096 tokens.

    One document in 23, chosen by a hash of its name, is for validation; the encoding is trained on
    the others.
    """
    arrays = _prepared(folder("text"), f"bpe{VOCABULARY}", _encode)
    return Text(arrays["train"], arrays["validation"], digest(*arrays.values()))


def _encode(source):
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
        vocab_size=VOCABULARY,
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
