"""When a verifier has more to do than its readers can wait for, new sessions wait at the devices. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from edge_verifier.session import Session
from edge_verifier.table_rules import TableRules
from edge_verifier.window_checks import Fault

_FEW = 4
"""So few sessions that wait at once share little: with one less the others would hardly be faster."""


def overload_fault(
    sessions: Iterable[Session], rules: TableRules, backlog_s: float, now_s: float
) -> Fault | None:
    """Why no session is opened now: prompts pile up, or readers have had nothing new for too long.

    The longer either is, the later a newcomer is to come back. Of sessions whose device is drafting nothing
    is said, for what the device takes is not the verifier's.
    """
    if backlog_s > rules.max_backlog_s:
        return Fault("busy", f"prompts wait for {backlog_s:.1f} s already", backlog_s)
    if rules.max_late_s is None:
        return None
    late_s = [now_s - session.shown.dry_s for session in sessions if session.is_busy]
    if len(late_s) < _FEW or (usual_s := median(late_s)) <= rules.max_late_s:
        return None
    detail = f"{len(late_s)} sessions wait, half of them {usual_s:.1f} s longer than their text lasts"
    return Fault("busy", detail, usual_s)
