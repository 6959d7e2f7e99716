"""What a step costs, learned from the steps themselves: step time = fixed + per token x tokens.

Least squares with exponential forgetting, so that the fit follows a change of load or clock. Both
coefficients are bounded from below: noise must never promise free tokens.
"""

from __future__ import annotations

_FORGETTING = 0.98
_FIRST_FIXED_S = 0.02
_FIRST_PER_TOKEN_S = 0.0005
_PRIOR_WEIGHT = 2.0
_MIN_PER_TOKEN_S = 1e-6
_INERTIA = 4.0
"""Steps of one size tell nothing of a token's cost: while sizes vary less than this, it stays as it was."""
_MAX_OUTLIER = 8.0
"""A step this many times over its prediction (a page fault, a suspended machine) counts only up to there."""


class StepCost:
    """An online fit of step times. Before the first step it believes in a guess of 20 ms and 0.5 ms."""

    def __init__(self) -> None:
        self._n = self._x = self._xx = self._y = self._xy = 0.0
        for tokens in (1.0, 65.0):
            self._add(tokens, _FIRST_FIXED_S + _FIRST_PER_TOKEN_S * tokens, _PRIOR_WEIGHT / 2)
        self._n_steps = 0
        self.fixed_s = _FIRST_FIXED_S
        self.per_token_s = _FIRST_PER_TOKEN_S

    def predict_s(self, n_tokens: float) -> float:
        """Expected time of a step of `n_tokens`."""
        return self.fixed_s + self.per_token_s * n_tokens

    def observe(self, n_tokens: float, step_s: float) -> None:
        """Learn from one step."""
        if self._n_steps == 0:  # the guess may be far off: rescale it by the first truth
            self._keep(1.0, step_s / self.predict_s(n_tokens))
        else:
            step_s = min(step_s, _MAX_OUTLIER * self.predict_s(n_tokens))
            self._keep(_FORGETTING, 1.0)
        self._n_steps += 1
        self._add(n_tokens, step_s, 1.0)
        self._solve()

    def _add(self, x: float, y: float, weight: float) -> None:
        self._n += weight
        self._x += weight * x
        self._xx += weight * x * x
        self._y += weight * y
        self._xy += weight * x * y

    def _keep(self, weight: float, scale: float) -> None:
        """Let what is known count `weight` times as much, its times scaled by `scale`."""
        self._n *= weight
        self._x *= weight
        self._xx *= weight
        self._y *= weight * scale
        self._xy *= weight * scale

    def _solve(self) -> None:
        mean_x, mean_y = self._x / self._n, self._y / self._n
        variance = self._xx / self._n - mean_x * mean_x
        covariance = self._xy / self._n - mean_x * mean_y
        slope = (covariance + _INERTIA * self.per_token_s) / (variance + _INERTIA)
        ceiling = mean_y / max(mean_x, 1.0)
        self.per_token_s = max(_MIN_PER_TOKEN_S, min(slope, ceiling))
        self.fixed_s = max(0.0, mean_y - self.per_token_s * mean_x)
