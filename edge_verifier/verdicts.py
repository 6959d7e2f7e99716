"""From logits to judgement to verdict, and what one more position costs everybody."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from edge_verifier.session import Session
from edge_verifier.work import Pending
from protocol.coupling import JudgedWindow, Judgement, judge, judge_together
from protocol.messages import Verdict, Window
from protocol.raw_logits import Floats, RawLogits, as_floats
from protocol.top_logits import TopRows

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """What a verdict tells of its round.

    Attributes:
        price: see `price_ms`.
        queue_s: from the window's arrival to its step.
        engine_s: the step.
    """

    price: float = 0.0
    queue_s: float = 0.0
    engine_s: float = 0.0


def judged_window(session: Session, pending: Pending, logits: RawLogits | TopRows) -> JudgedWindow:
    """A window whose text ends right before its base, with the logits [n, vocab] that judge it.

    n may be below len(draft) + 1 when the turn ends within the window: rows after the end are not needed.
    """
    return JudgedWindow(logits, pending.draft, session.settings, pending.base, session.ends)


def judge_each(windows: Sequence[JudgedWindow]) -> list[Judgement | Exception]:
    """Judge the windows of one step together; an error in one, given in its place, harms no other."""
    try:
        judgements = judge_together(windows)
    except Exception:
        _logger.exception("%d windows cannot be judged together", len(windows))
        judgements = [None] * len(windows)
    return [
        _judge_alone(window) if judgement is None else judgement
        for window, judgement in zip(windows, judgements, strict=True)
    ]


def _judge_alone(window: JudgedWindow) -> Judgement | Exception:
    try:
        return judge(partial(_row, window.logits), window.draft, window.settings, window.base, window.ends)
    except Exception as error:  # noqa: BLE001 - the owner logs it with the session's id
        return error


def _row(logits: RawLogits | TopRows, n: int) -> Floats:
    return logits.dense(n) if isinstance(logits, TopRows) else as_floats(logits[n])


def verdict_of(session: Session, pending: Pending, judgement: Judgement, timing: Timing) -> Verdict:
    """The answer to a window just settled: all tokens from its `ack` on, so that lost verdicts heal."""
    return Verdict(
        uid=session.uid,
        generation=session.generation,
        round=pending.round,
        start=pending.ack,
        tokens=tuple(session.chain.tokens[pending.ack :]),
        n_accepted=judgement.n_accepted,
        finished=judgement.finished,
        price=timing.price,
        queue_us=max(0, round(timing.queue_s * 1e6)),
        engine_us=max(0, round(timing.engine_s * 1e6)),
    )


def known_verdict(session: Session, window: Window, price: float) -> Verdict:
    """The answer to a window of this generation whose positions have all been judged already.

    What follows its base are the target's own choices, so that no step is needed. It comes when the answers
    to several windows were lost, or forgotten.
    """
    judged = session.chain.tokens[window.base :]
    n_accepted = next(
        (i for i, (one, other) in enumerate(zip(window.draft, judged, strict=False)) if one != other),
        min(len(window.draft), len(judged)),
    )
    return Verdict(
        uid=session.uid,
        generation=session.generation,
        round=window.round,
        start=window.ack,
        tokens=tuple(session.chain.tokens[window.ack :]),
        n_accepted=n_accepted,
        price=price,
    )


def price_ms(per_token_s: float, n_sharing: float) -> float:
    """What one more position costs now: its time in the step, for each session that waits for that step.

    A lone session pays only for itself; in a full batch a weak draft delays everybody. Two digits are enough
    for a device's choice of window length, and short on the wire.
    """
    return float(f"{1000.0 * per_token_s * max(1.0, n_sharing):.2g}")
