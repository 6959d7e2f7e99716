"""What a delivered model must be: the fleet signs it, and every device checks its bytes against it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.errors import MessageError
from protocol.messages import Counter, Fingerprint
from protocol.model_block import BLOCK_BYTES

MAX_CHUNKS = 1024
"""So that all digests, and with them the whole manifest, fit into one message."""
LEAST_CHUNK_BYTES = 4 * BLOCK_BYTES
MAX_MODEL_BYTES = 32 * 1024**3
_DIGEST_BYTES = 32


def chunk_bytes_for(n_bytes: int) -> int:
    """Size of the chunks of a file: the smallest for which there are not too many."""
    least = -(-n_bytes // MAX_CHUNKS)
    return max(LEAST_CHUNK_BYTES, -(-least // BLOCK_BYTES) * BLOCK_BYTES)


class ModelManifest(BaseModel):
    """Name, size and checksums of one model file, and where to get it.

    A chunk is what is checked by itself; each crosses the broker in blocks.

    Attributes:
        fleet: for which fleet it was signed.
        revision: a device takes up a higher one only: neither a broker with an old persistence file nor
            anyone who kept an old manifest brings an old model back.
        file: what the file is called on the device.
        vocabulary: vocabulary fingerprint; a device computes it anew from the file.
        chunks: sha256 of each chunk, one after the other, in base64.
        is_over_mqtt: whether `sled fleet serve` has the file, too.
        url: of the file on a web server, `https://...`; empty when it is on none.
        url_ca: PEM certificates by which to know the web server; empty trusts the system's.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    format: Literal[1] = 1
    fleet: str = Field(pattern=r"^[a-z0-9-]{1,48}$")
    revision: Counter
    name: str = Field(min_length=1, max_length=200)
    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,150}\.gguf$")
    n_bytes: int = Field(ge=1, le=MAX_MODEL_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    vocabulary: Fingerprint
    chunk_bytes: int = Field(ge=BLOCK_BYTES, multiple_of=BLOCK_BYTES)
    chunks: str = Field(max_length=44_000)
    is_over_mqtt: bool = True
    url: str = Field(default="", max_length=1_000, pattern=r"^(https://\S+)?$")
    url_ca: str = Field(default="", max_length=8_000)

    @model_validator(mode="after")
    def _has_a_digest_for_each_chunk(self) -> Self:
        if len(self.digests) != self.n_chunks:
            raise ValueError(f"{len(self.digests)} digests for {self.n_chunks} chunks")
        if not self.is_over_mqtt and not self.url:
            raise ValueError("it says nowhere where the file is")
        return self

    @classmethod
    def parse(cls, text: str | bytes) -> ModelManifest:
        """Read the signed text.

        Raises:
            MessageError: it is no manifest that this version understands.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise MessageError(
                f"model manifest field {where!r:.60}: {first['msg']:.120}",
                reason="bad_message",
                hint="update the older side",
            ) from error

    @property
    def key(self) -> str:
        """The name of the file's bytes in blocks and requests: the first 16 hex digits of its sha256."""
        return self.sha256[:16]

    @property
    def n_chunks(self) -> int:
        return -(-self.n_bytes // self.chunk_bytes)

    @property
    def n_blocks(self) -> int:
        return -(-self.n_bytes // BLOCK_BYTES)

    @property
    def blocks_per_chunk(self) -> int:
        return self.chunk_bytes // BLOCK_BYTES

    def chunk_size(self, chunk: int) -> int:
        """Bytes of one chunk; the last one is shorter."""
        return min(self.chunk_bytes, self.n_bytes - chunk * self.chunk_bytes)

    def block_size(self, block: int) -> int:
        """Bytes of one block; the last one is shorter."""
        return min(BLOCK_BYTES, self.n_bytes - block * BLOCK_BYTES)

    def blocks_of(self, chunk: int) -> range:
        """The blocks that make up a chunk."""
        first = chunk * self.blocks_per_chunk
        return range(first, min(first + self.blocks_per_chunk, self.n_blocks))

    @cached_property
    def digests(self) -> Sequence[bytes]:
        """sha256 of each chunk."""
        try:
            raw = base64.b64decode(self.chunks, validate=True)
        except binascii.Error as error:
            raise ValueError(f"chunks are not base64: {error}") from error
        return tuple(raw[start : start + _DIGEST_BYTES] for start in range(0, len(raw), _DIGEST_BYTES))


def pack_digests(chunks: Iterable[bytes]) -> str:
    """The `chunks` field for the contents of all chunks, in order."""
    return base64.b64encode(b"".join(sha256(chunk).digest() for chunk in chunks)).decode("ascii")
