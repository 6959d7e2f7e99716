"""The chain hash: 64 bits that name a whole token history together with its settings.

h(0) covers sampler version, settings, seed and target fingerprint; h(i+1) = H(h(i), token i). A window names
its base by h(base), over committed and presumed tokens, so that either end sees at once whether both mean the
same text. Eight bytes guard against accidents, not against a hostile device, which could only confuse itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from protocol.messages import SamplerSettings
from protocol.sampler import SAMPLER_VERSION

_HASH_BYTES = 8


def origin(settings: SamplerSettings, target: str) -> bytes:
    """h(0) of a session with `settings`, bound to the target fingerprint `target`."""
    numbers = struct.pack(
        "<HdHdQI",
        SAMPLER_VERSION,
        settings.temperature,
        settings.top_k,
        settings.top_p,
        settings.seed,
        settings.attempt,
    )
    return blake2b(numbers + target.encode(), digest_size=_HASH_BYTES, person=b"sled-h0").digest()


class Chain:
    """A token history with the hash of every prefix; appending and truncating are cheap."""

    def __init__(self, settings: SamplerSettings, target: str, tokens: Iterable[int] = ()) -> None:
        self._hashes = [origin(settings, target)]
        self._tokens: list[int] = []
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """The history; do not modify."""
        return self._tokens

    def hash_at(self, length: int) -> str:
        """The hash of the first `length` tokens as 16 hex digits; 0 <= length <= len(self)."""
        return self._hashes[length].hex()

    def hash_after(self, extra: Iterable[int]) -> str:
        """The hash of the whole history followed by `extra`, which is not appended."""
        last = self._hashes[-1]
        for token in extra:
            last = _link(last, token)
        return last.hex()

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        last = self._hashes[-1]
        for token in tokens:
            last = _link(last, token)
            self._hashes.append(last)
            self._tokens.append(token)

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        del self._tokens[length:]
        del self._hashes[length + 1 :]


def _link(previous: bytes, token: int) -> bytes:
    return blake2b(previous + token.to_bytes(4, "little"), digest_size=_HASH_BYTES).digest()
