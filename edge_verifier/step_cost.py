"""What a step costs, learned from the steps themselves, and how sure that is.

Step time = fixed + per token x tokens + what tokens of prompts cost beyond those of windows, of which a part
grows with their place in the prompt. A Kalman filter: what steps do not tell (a token's price, while all
steps have one size) stays as it was, and becomes slowly less certain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_DOUBT = np.array((1.0, 1.0, 0.5, 1.0))
"""Standard deviation of what is not known, in units of `_units`."""
_DRIFT = np.array((0.005, 0.005, 0.02, 0.02))
"""What each price may change from one step to the next, in the same units."""
_COMMON_DRIFT = 0.03
"""What the machine's speed may change from one step to the next: all prices by the same part."""
_LEAST_NOISE, _NOISE, _MOST_NOISE = 0.02, 0.05, 0.2
"""Of step times, in parts of them: at least, at first, and at most."""
_OUTLIER = 4.0
"""A step so many standard deviations off (a page fault, a suspended machine) counts only up to there."""
_CAUTION = 2.0
"""Standard deviations."""
_MOST_FALL = 0.5
"""One step lowers no price below this part of it: noise must never promise free tokens."""
_LEAST_S = 1e-9


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step computes.

    Attributes:
        n_tokens: all tokens.
        n_prompt: those of them that are of prompts.
        n_behind: positions before each token of a prompt, summed.
    """

    n_tokens: float
    n_prompt: float = 0.0
    n_behind: float = 0.0

    @classmethod
    def of_prompt(cls, n_tokens: int, n_cached: int) -> StepSize:
        """The next `n_tokens` of a prompt of which `n_cached` are computed."""
        return cls(n_tokens, n_tokens, n_tokens * (n_cached + n_tokens / 2))

    def __add__(self, other: StepSize) -> StepSize:
        return StepSize(
            self.n_tokens + other.n_tokens, self.n_prompt + other.n_prompt, self.n_behind + other.n_behind
        )


class _Prices(NamedTuple):
    """Seconds: of any step, a token, a prompt's token beyond that, and for each 1,000 positions before it."""

    fixed_s: float
    token_s: float
    prompt_s: float
    behind_s: float


class StepCost:
    """An online fit of step times. Before the first step it believes in a guess of 20 ms and 0.5 ms."""

    def __init__(self) -> None:
        self._prices = _Prices(0.02, 0.0005, 0.0, 0.00025)
        self._covariance = np.diag((_DOUBT * self._units()) ** 2)
        self._noise = _NOISE**2
        self._n_steps = 0

    @property
    def fixed_s(self) -> float:
        """The part that does not depend on what a step computes."""
        return self._prices.fixed_s

    @property
    def per_token_s(self) -> float:
        """A token of a window."""
        return self._prices.token_s

    def predict_s(self, size: StepSize | float) -> float:
        """Expected time of a step; where just a number of tokens is given, they are of windows."""
        prices = self._prices
        if not isinstance(size, StepSize):
            return prices.fixed_s + prices.token_s * size
        return (
            prices.fixed_s
            + prices.token_s * size.n_tokens
            + prices.prompt_s * size.n_prompt
            + prices.behind_s * size.n_behind / 1000.0
        )

    def prompt_token_s(self, n_cached: int) -> float:
        """What the next token of a prompt costs; `n_cached` are computed."""
        prices = self._prices
        return max(_LEAST_S, prices.token_s + prices.prompt_s + prices.behind_s * n_cached / 1000.0)

    def prompt_tokens_within(self, headroom_s: float, step_s: float, n_cached: int) -> float:
        """How many next tokens of a prompt lengthen a step of `step_s` by hardly ever more than `headroom_s`.

        Both count against them: how far steps scatter on this machine, and how unsure the tokens' price is,
        which at first it is. 0 where the scatter alone is too much.
        """
        features = np.array((0.0, 1.0, 1.0, n_cached / 1000.0))
        price_s = self.prompt_token_s(n_cached)
        doubt = _CAUTION**2 * float(features @ self._covariance @ features)
        scatter = _CAUTION**2 * self._noise * step_s**2
        # n with (headroom - n * price)^2 = n^2 * doubt + scatter, the smaller one
        rest = headroom_s**2 - scatter
        if headroom_s < _LEAST_S or rest <= 0.0:
            return 0.0
        root = math.sqrt(max(0.0, headroom_s**2 * doubt + scatter * (price_s**2 - doubt)))
        return rest / (headroom_s * price_s + root)

    def observe(self, size: StepSize | float, step_s: float) -> None:
        """Learn from one step."""
        if not isinstance(size, StepSize):
            size = StepSize(size)
        if self._n_steps == 0:  # the guess may be far off: rescale it by the first truth
            self._rescale(max(step_s / self.predict_s(size), _LEAST_S))
        else:
            self._drift()
        self._n_steps += 1
        self._correct(size, step_s)

    def _units(self) -> NDArray[np.float64]:
        """What changes of the prices are measured in; of none zero, or that price would stay for ever."""
        token_s = self._prices.token_s + self._prices.fixed_s / 1000.0
        return np.array((self._prices.fixed_s + 10.0 * token_s, token_s, token_s, token_s))

    def _rescale(self, factor: float) -> None:
        self._prices = _Prices(*(factor * price_s for price_s in self._prices))
        self._covariance *= factor * factor

    def _drift(self) -> None:
        """Time has passed: everything is less certain, but never less than with no step seen."""
        units, common = self._units(), _COMMON_DRIFT * np.array(self._prices)
        self._covariance += np.diag((_DRIFT * units) ** 2) + np.outer(common, common)
        excess = np.minimum(1.0, _DOUBT * units / np.sqrt(np.maximum(self._covariance.diagonal(), 1e-300)))
        self._covariance *= np.outer(excess, excess)

    def _correct(self, size: StepSize, step_s: float) -> None:
        features = np.array((1.0, size.n_tokens, size.n_prompt, size.n_behind / 1000.0))
        expected_s = max(self.predict_s(size), _LEAST_S)
        spread = self._covariance @ features
        doubt = max(0.0, float(features @ spread))
        variance = doubt + self._noise * expected_s**2
        bound_s = _OUTLIER * variance**0.5
        error_s = min(max(step_s - expected_s, -bound_s), bound_s)
        self._prices = self._bounded(np.array(self._prices) + spread * (error_s / variance))
        self._covariance -= np.outer(spread, spread) / variance
        noise = max(0.0, error_s**2 - doubt) / expected_s**2
        noise = self._noise + 0.05 * (noise - self._noise)
        self._noise = min(max(noise, _LEAST_NOISE**2), _MOST_NOISE**2)

    def _bounded(self, prices_s: NDArray[np.float64]) -> _Prices:
        fixed_s, token_s, prompt_s, behind_s = map(float, prices_s)
        token_s = max(token_s, _MOST_FALL * self._prices.token_s, _LEAST_S)
        return _Prices(
            max(fixed_s, _MOST_FALL * self._prices.fixed_s),
            token_s,
            max(prompt_s, -_MOST_FALL * token_s),
            max(behind_s, 0.0),
        )
