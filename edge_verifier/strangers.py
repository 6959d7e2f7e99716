"""What is remembered of sessions not in the table: refused ones, and those over for good. Bounded."""

from __future__ import annotations

from collections import OrderedDict, deque

from edge_verifier.session import Key

_MAX_REFUSED = 4096
_MAX_RETIRED_KEYS = 4096
_MAX_RETIRED_PER_KEY = 4
_N_WAITS = 8


class Strangers:
    """Pure: it is given the time.

    Args:
        repeat_s: one refusal per (uid, generation) within this time.
    """

    def __init__(self, repeat_s: float) -> None:
        self._repeat_s = repeat_s
        self._refused_s: OrderedDict[tuple[Key, str, int], float] = OrderedDict()
        self._retired: OrderedDict[Key, deque[tuple[str, int]]] = OrderedDict()
        self._n_waits = 0

    def is_to_be_told(self, key: Key, uid: str, generation: int, now_s: float) -> bool:
        """Whether an unknown session is refused now, or has just been."""
        name = (key, uid, generation)
        last_s = self._refused_s.get(name)
        if last_s is not None and now_s - last_s < self._repeat_s:
            return False
        self._refused_s[name] = now_s
        self._refused_s.move_to_end(name)
        if len(self._refused_s) > _MAX_REFUSED:
            self._refused_s.popitem(last=False)
        return True

    def retire(self, key: Key, uid: str, generation: int) -> None:
        """A session has ended for good: late copies of its messages must not bring it back."""
        self._retired.setdefault(key, deque(maxlen=_MAX_RETIRED_PER_KEY)).append((uid, generation))
        self._retired.move_to_end(key)
        if len(self._retired) > _MAX_RETIRED_KEYS:
            self._retired.popitem(last=False)

    def is_retired(self, key: Key, uid: str, generation: int) -> bool:
        """Whether that is a late message of a session that has ended; a newer generation is not."""
        return any(uid == gone and generation <= last for gone, last in self._retired.get(key, ()))

    def wait_s(self, base_s: float) -> float:
        """Different waits, up to twice `base_s`, for devices that are turned away together."""
        self._n_waits += 1
        return round(base_s * (1.0 + self._n_waits % _N_WAITS / _N_WAITS), 3)
