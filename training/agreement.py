"""How often a draft chooses what the target chooses, position by position."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from protocol.messages import SamplerSettings
from protocol.sampler import choose
from training.chat import ASSISTANT, END, SPECIAL_TOKENS

Rows = NDArray[np.float32]
Figures = dict[str, dict[str, float]]

TEMPERATURES = (0.0, 0.7, 1.0)
WINDOWS = (4, 8)
SEED = 20_240


@dataclass
class Tally:
    """Sums over the positions of one domain, or of its answers."""

    target_loss: list[float] = field(default_factory=list)
    draft_loss: list[float] = field(default_factory=list)
    same: dict[float, list[bool]] = field(default_factory=dict)
    best: dict[float, list[float]] = field(default_factory=dict)

    def add(self, ids: Sequence[int], target: Rows, draft: Rows, places: Sequence[int]) -> None:
        """Count the tokens at `places` of a document, given both models' rows for all of it."""
        before = [place - 1 for place in places]
        wanted = np.array([ids[place] for place in places], dtype=np.int64)
        self.target_loss += losses(target[before], wanted)
        self.draft_loss += losses(draft[before], wanted)
        for temperature in TEMPERATURES:
            settings = SamplerSettings(temperature=temperature, seed=SEED)
            same = [
                choose(target[place - 1], settings, place) == choose(draft[place - 1], settings, place)
                for place in places
            ]
            self.same.setdefault(temperature, []).extend(same)
            best = same if temperature == 0 else overlaps(target[before], draft[before], temperature)
            self.best.setdefault(temperature, []).extend(float(share) for share in best)

    def figures(self) -> dict[str, float]:
        """Means under the names that the report uses."""
        found = {
            "tokens": float(len(self.target_loss)),
            "target_loss": fmean(self.target_loss),
            "draft_loss": fmean(self.draft_loss),
        }
        for temperature, same in self.same.items():
            found[f"accepted_{name(temperature)}"] = fmean(same)
            found[f"maximal_{name(temperature)}"] = fmean(self.best[temperature])
            for window in WINDOWS:
                found[f"per_window_of_{window}_{name(temperature)}"] = per_window(same, window)
        return found


def name(temperature: float) -> str:
    """A temperature within the name of a figure, such as `t0_7`."""
    return f"t{temperature:g}".replace(".", "_")


def log_probabilities(rows: Rows) -> NDArray[np.float64]:
    """Log-softmax of rows of logits."""
    shifted = rows.astype(np.float64) - rows.max(axis=-1, keepdims=True)
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def losses(rows: Rows, wanted: NDArray[np.int64]) -> list[float]:
    """Cross-entropy in nats of each wanted token."""
    chosen: list[float] = (-log_probabilities(rows)[np.arange(len(wanted)), wanted]).tolist()
    return chosen


def overlaps(target: Rows, draft: Rows, temperature: float) -> list[float]:
    """1 - total variation distance: what the best coupling of each row would accept."""
    pair = [np.exp(log_probabilities(rows / temperature)) for rows in (target, draft)]
    shares: list[float] = np.minimum(*pair).sum(axis=-1).tolist()
    return shares


def per_window(same: Sequence[bool], window: int) -> float:
    """Mean accepted drafts of windows laid end to end, each up to its first difference."""
    counts: list[int] = []
    place = 0
    while place + window <= len(same):
        differing = (i for i, ok in enumerate(same[place : place + window]) if not ok)
        counts.append(next(differing, window))
        place += counts[-1] + 1
    return fmean(counts) if counts else 0.0


def answer_places(ids: Sequence[int]) -> list[int]:
    """Places of the tokens of assistant messages, the end token included."""
    assistant, end = SPECIAL_TOKENS.index(ASSISTANT), SPECIAL_TOKENS.index(END)
    places: list[int] = []
    answering = False
    for place, token in enumerate(ids):
        if answering:
            places.append(place)
        if token in (assistant, end):
            answering = token == assistant
    return places
