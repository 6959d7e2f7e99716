"""Limits of the session table that are not the engine's."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_verifier.checkpoints import CheckpointRule
from edge_verifier.prefixes import PrefixRules
from edge_verifier.shown_text import DisplayRates


@dataclass(frozen=True)
class TableRules:
    """How many sessions, for how long, and how they are paced.

    Attributes:
        max_sessions: below the engine's own limit; None for no other.
        min_idle_s: a session younger in silence than this, and in the middle of a turn, is never dropped for
            an opening.
        max_backlog_s: prompts waiting for longer than this make new openings wait at their devices.
        max_late_s: new openings wait at their devices while half of the sessions that wait for a step have
            had nothing to show for longer than this; None for never.
        display_rates: how fast users read; sets when a session's shown text runs dry.
        repeat_unknown_s: an unknown session is refused once per generation within this time.
    """

    max_sessions: int | None = None
    min_idle_s: float = 2.0
    max_backlog_s: float = 10.0
    max_late_s: float | None = None
    display_rates: DisplayRates = field(default_factory=DisplayRates)
    repeat_unknown_s: float = 2.0
    prefixes: PrefixRules = field(default_factory=PrefixRules)
    checkpoints: CheckpointRule = field(default_factory=CheckpointRule)
