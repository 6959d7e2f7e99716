"""Training batches: documents drawn by domain share and packed into rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.chat import END, SPECIAL_TOKENS, SYSTEM
from training.corpus import DOMAINS, Domain, Encoded, Ids

END_ID = SPECIAL_TOKENS.index(END)
SYSTEM_ID = SPECIAL_TOKENS.index(SYSTEM)
SYSTEM_WEIGHT = 0.15
LENGTHS = (512, 512, 512, 512, 512, 512, 512, 1_024, 1_024, 2_048)
SHORTEST_CUT = 24
MEAN_CUT = 350.0
TRIES = 6


@dataclass(frozen=True)
class Batch:
    """Rows of equal length; a weight says how much predicting that token counts."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]


class Packer:
    """An endless, resumable source of batches of a fixed number of tokens.

    Chat documents are placed whole, so that an answer keeps the device list it
    is about; free text is cut to what is left of a row. Every domain is walked
    in a new random order each time round.
    """

    def __init__(
        self,
        domains: Mapping[str, Encoded],
        tokens: int,
        seed: int,
        lengths: Sequence[int] = LENGTHS,
    ) -> None:
        self._domains = {d.name: d for d in DOMAINS if d.name in domains}
        self._documents = domains
        self._tokens = tokens
        self._seed = seed
        self._lengths = lengths
        self._drawn = dict.fromkeys(self._domains, 0)
        self.placed = dict.fromkeys(self._domains, 0)
        self._orders: dict[tuple[str, int], NDArray[np.int64]] = {}

    def state(self) -> dict[str, dict[str, int]]:
        """How far each domain has been walked, and the tokens placed."""
        return {"drawn": dict(self._drawn), "placed": dict(self.placed)}

    def restore(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Go on from a `state`."""
        self._drawn |= state["drawn"]
        self.placed |= state["placed"]

    def batch(self, step: int) -> Batch:
        """The batch of a step; the same for the same seed, step and state."""
        random = np.random.default_rng((self._seed, step))
        length = min(int(random.choice(self._lengths)), self._tokens)
        rows = [self._row(length, random) for _ in range(self._tokens // length)]
        ids = np.stack([row for row, _ in rows]).astype(np.int64)
        return Batch(ids, np.stack([weights for _, weights in rows]))

    def _row(self, length: int, random: np.random.Generator) -> tuple[Ids, NDArray[np.float32]]:
        ids = np.empty(length, dtype=np.uint16)
        weights = np.ones(length, dtype=np.float32)
        filled = 0
        while filled < length:
            piece = self._piece(length - filled, random)
            ids[filled : filled + len(piece)] = piece
            weights[filled : filled + system_end(piece)] = SYSTEM_WEIGHT
            filled += len(piece)
        return ids, weights

    def _piece(self, room: int, random: np.random.Generator) -> Ids:
        """A document that fits into `room` tokens, or a cut of free text that fills it."""
        for _ in range(TRIES):
            domain = self._domain(random, chat=room > SHORTEST_CUT)
            document = self._next(domain.name)
            if domain.kind == "chat" and len(document) > room:
                continue
            if domain.kind == "text" and len(document) > room:
                start = int(random.integers(-room, len(document) - room + 1))
                document = document[max(0, start) : max(0, start) + room]
            self.placed[domain.name] += len(document)
            return document
        return self._filler(room, random)

    def _filler(self, room: int, random: np.random.Generator) -> Ids:
        domain = self._domain(random, chat=False)
        document = self._next(domain.name)[:room]
        self.placed[domain.name] += len(document)
        return document

    def _domain(self, random: np.random.Generator, *, chat: bool) -> Domain:
        among = [d for d in self._domains.values() if chat or d.kind == "text"]
        among = among or list(self._domains.values())
        wanted = np.array([d.share * self._lack(d) / self._mean_length(d) for d in among])
        return among[int(random.choice(len(among), p=wanted / wanted.sum()))]

    def _lack(self, domain: Domain) -> float:
        """How far a domain is behind its share of the tokens placed; 1 when even."""
        whole = sum(d.share for d in self._domains.values())
        due = domain.share / whole * sum(self.placed.values())
        return float(np.clip((due + 1) / (self.placed[domain.name] + 1), 0.2, 5.0)) ** 2

    def _mean_length(self, domain: Domain) -> float:
        found = self._documents[domain.name]
        mean = len(found.ids) / len(found)
        return mean if domain.kind == "chat" else min(mean, MEAN_CUT)

    def _next(self, name: str) -> Ids:
        found = self._documents[name]
        turn, place = divmod(self._drawn[name], len(found))
        self._drawn[name] += 1
        return found[int(self._order(name, turn, len(found))[place])]

    def _order(self, name: str, turn: int, documents: int) -> NDArray[np.int64]:
        if (name, turn) not in self._orders:
            self._orders = {key: v for key, v in self._orders.items() if key[0] != name}
            number = [d.name for d in DOMAINS].index(name)
            random = np.random.default_rng((self._seed, number, turn))
            self._orders[name, turn] = random.permutation(documents)
        return self._orders[name, turn]


def system_end(document: Ids) -> int:
    """Length of a document's beginning up to the end of its system message."""
    if len(document) < 2 or document[1] != SYSTEM_ID:
        return 0
    return int(np.argmax(document == END_ID)) + 1
