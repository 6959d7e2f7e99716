"""The verifier's retained advert, and when it is worth writing again.

Each write goes to every device, so the price alone rewrites it only on a change of 2x, or in `interval_s`;
free sessions and draining, which decide where new sessions go, at most once a second.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_verifier.engine import EngineInfo
from edge_verifier.window_checks import longest_text
from protocol.messages import VerifierStatus
from protocol.sampler import SAMPLER_VERSION

_PRICE_FACTOR = 2.0


@dataclass(frozen=True)
class AdvertPace:
    """Least times between two writes: for anything at all, and for what only devices' choices need."""

    interval_s: float = 30.0
    soonest_s: float = 1.0


class Advert:
    """Pure: it is given the time.

    Args:
        incarnation: name of this life of the process; the will carries it too.
    """

    def __init__(self, info: EngineInfo, incarnation: str, pace: AdvertPace | None = None) -> None:
        self._info = info
        self._incarnation = incarnation
        self._pace = pace or AdvertPace()
        self._written: VerifierStatus | None = None
        self._written_s = 0.0
        self.next_s: float | None = None
        """When the last status asked about is due; None when it has been written."""

    @property
    def incarnation(self) -> str:
        """Name of this life."""
        return self._incarnation

    @property
    def farewell(self) -> VerifierStatus:
        """What stands there when the verifier is gone; also its last will."""
        return VerifierStatus(is_alive=False, incarnation=self._incarnation)

    def due(
        self,
        now_s: float,
        *,
        price: float,
        n_free_sessions: int,
        is_draining: bool,
        is_drained: bool = False,
    ) -> VerifierStatus | None:
        """The advert to write now; None while the last one is good enough."""
        status = VerifierStatus(
            is_alive=True,
            incarnation=self._incarnation,
            target=self._info.target,
            vocabulary=self._info.vocabulary,
            model=self._info.model[:200],
            dtype=self._info.dtype[:20],
            engine=self._info.name[:40],
            max_context=longest_text(self._info),
            n_free_sessions=n_free_sessions,
            is_draining=is_draining,
            is_drained=is_drained,
            price=price,
            sampler_version=SAMPLER_VERSION,
        )
        due_s = self._due_s(status, now_s)
        if due_s is None or due_s > now_s:
            self.next_s = due_s
            return None
        self._written, self._written_s, self.next_s = status, now_s, None
        return status

    def _due_s(self, status: VerifierStatus, now_s: float) -> float | None:
        last = self._written
        if last is None or (status.is_draining, status.is_drained) != (last.is_draining, last.is_drained):
            return now_s
        if status == last:
            return None
        is_price_far = not last.price / _PRICE_FACTOR < status.price < last.price * _PRICE_FACTOR
        is_news = (status.price != last.price and is_price_far) or (
            status.n_free_sessions != last.n_free_sessions
        )
        return self._written_s + (self._pace.soonest_s if is_news else self._pace.interval_s)
