"""Fingerprints: 64-bit names of vocabularies, weights and targets, computed from files, never believed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b, sha256
from pathlib import Path

from protocol.sampler import SAMPLER_VERSION

_PADDING = re.compile(r"\[PAD\d*\]|<unused\d+>|\[UNUSED\d*\]", re.IGNORECASE)


def vocabulary_fingerprint(tokens: Sequence[str]) -> str:
    """Fingerprint of a vocabulary given its token strings in id order.

    Padding entries at the end are left out, because exporters fill a model's last rows differently; and the
    sentencepiece space counts as a space, because converters to GGUF write it so in added tokens only.
    """
    length = len(tokens)
    while length and _PADDING.fullmatch(tokens[length - 1]):
        length -= 1
    digest = blake2b(digest_size=8, person=b"sled-vocabulary")
    for token in tokens[:length]:
        encoded = token.replace("\u2581", " ").encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of one file, read in pieces, as 64 hex digits."""
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def files_sha256(paths: Iterable[Path], of_file: Callable[[Path], str] = file_sha256) -> str:
    """sha256 over the names and contents of files, in name order, as 64 hex digits.

    Args:
        of_file: gives the sha256 of one file; for callers that know some already.
    """
    digest = sha256()
    for path in sorted(paths, key=lambda item: item.name):
        digest.update(path.name.encode() + b"\0" + bytes.fromhex(of_file(path)))
    return digest.hexdigest()


def target_fingerprint(weights_sha256: str, dtype: str, engine: str) -> str:
    """What a session is bound to: equal fingerprints continue a text with the same tokens."""
    text = f"{weights_sha256}\0{dtype}\0{engine}\0sampler-{SAMPLER_VERSION}"
    return blake2b(text.encode(), digest_size=8, person=b"sled-target").hexdigest()
