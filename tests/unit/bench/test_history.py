"""The checker on histories written by hand: right ones pass, and each rule finds what breaks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bench.history import History, Turn, Violation
from bench.recording import Record, What
from protocol.chain import Chain
from protocol.codec import encode
from protocol.messages import Checkpoint, Opening, SamplerSettings, Verdict, Window
from protocol.sampler import SAMPLER_VERSION
from protocol.topics import STATE, VERDICT, WINDOW

UID = "00000000000000aa"
TARGET = "00000000000000bb"
SETTINGS = SamplerSettings(temperature=1.0, seed=5)
OPENING = Opening(settings=SETTINGS, target=TARGET, sampler_version=SAMPLER_VERSION)
PROMPT = (1, 2, 3)
ANSWER = (4, 5, 6, 7)
NAMES = {"v": "v1", "d": "dev-a", "n": 0}


def hash_at(length: int) -> str:
    return Chain(SETTINGS, TARGET, PROMPT + ANSWER).hash_at(length)


def opening(generation: int = 1, tokens: Sequence[int] = PROMPT, **changes: Any) -> Window:
    fields = {"round": 0, "ack": len(tokens), "base": 0, "hash": hash_at(0)} | changes
    return Window(uid=UID, generation=generation, opening=OPENING, context=tuple(tokens), limit=7, **fields)


def window(generation: int, number: int, base: int, draft: Sequence[int], **changes: Any) -> Window:
    fields = {"ack": base, "hash": hash_at(base)} | changes
    return Window(uid=UID, generation=generation, round=number, base=base, draft=tuple(draft), **fields)


def verdict(generation: int, number: int, start: int, tokens: Sequence[int]) -> Verdict:
    return Verdict(
        uid=UID, generation=generation, round=number, start=start, tokens=tuple(tokens), n_accepted=0
    )


def compare(turns: Sequence[Turn]) -> list[str]:
    """What is wrong with each answer; one that was stopped may end early."""
    ends = (len(turn.tokens) if turn.reason == "stopped" else len(ANSWER) for turn in turns)
    return ["" if turn.tokens == ANSWER[:end] else "wrong" for turn, end in zip(turns, ends, strict=True)]


class Story:
    """Records in the order in which they are told."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._n_published = 0

    def tell(self, what: What, life: str = "dev-a#1", **details: Any) -> Story:
        self.records.append(Record(life, float(len(self.records)), what, details))
        return self

    def sends(self, sent: Window, life: str = "dev-a#1", *, is_acknowledged: bool = True) -> Story:
        self._publish(WINDOW.topic("f", **NAMES), encode(sent), life)
        if is_acknowledged:
            self.tell("acknowledged", life, sequence=self._n_published, reason_code=0)
        return self

    def answers(self, sent: Verdict, life: str = "v1#1", *, is_received: bool = True) -> Story:
        topic, payload = VERDICT.topic("f", **NAMES), encode(sent)
        self._publish(topic, payload, life)
        return self.tell("received", topic=topic, payload=payload.decode()) if is_received else self

    def keeps(self, tokens: Sequence[int], life: str = "v1#1") -> Story:
        copy = Checkpoint(uid=UID, generation=1, opening=OPENING, tokens=tuple(tokens), limit=7)
        return self._publish(STATE.topic("f", **NAMES), encode(copy), life)

    def begins(self, at: int = 3, life: str = "dev-a#1") -> Story:
        return self.tell("turn", life, uid=UID, at=at, prompt=PROMPT, settings=SETTINGS.model_dump(), limit=7)

    def shows(self, tokens: Sequence[int], life: str = "dev-a#1") -> Story:
        return self.tell("shown", life, uid=UID, tokens=tokens)

    def finishes(self, tokens: Sequence[int] = ANSWER, reason: str = "limit", life: str = "dev-a#1") -> Story:
        return self.tell("finished", life, uid=UID, reason=reason, tokens=tokens)

    def violations(self) -> list[Violation]:
        history = History(self.records)
        history.check_target(compare)
        return history.violations

    def rules(self) -> set[str]:
        return {violation.rule for violation in self.violations()}

    def _publish(self, topic: str, payload: bytes, life: str) -> Story:
        self._n_published += 1
        return self.tell("published", life, topic=topic, payload=payload.decode(), sequence=self._n_published)


def good() -> Story:
    """A whole turn in two rounds, with a duplicate window and a lost verdict that came again."""
    story = Story().sends(opening()).begins().answers(verdict(1, 0, 3, (4,))).shows((4,)).keeps(PROMPT)
    drafts = window(1, 1, 4, (5, 9))
    story.sends(drafts).answers(verdict(1, 1, 4, (5, 6)), is_received=False)
    story.sends(drafts).answers(verdict(1, 1, 4, (5, 6))).shows((5, 6))
    return story.sends(window(1, 2, 6, ())).answers(verdict(1, 2, 6, (7,))).shows((7,)).finishes()


def test_a_right_history_passes_with_duplicates_and_lost_answers_in_it() -> None:
    assert good().violations() == []


def test_a_turn_that_a_later_life_finishes_passes() -> None:
    story = Story().sends(opening()).begins().answers(verdict(1, 0, 3, (4,))).shows((4,))
    story.begins(4, "dev-a#2").sends(opening(34, (*PROMPT, 4)), "dev-a#2")
    story.answers(verdict(34, 0, 4, (5, 6, 7))).shows((5, 6, 7), "dev-a#2").finishes(life="dev-a#2")
    assert story.violations() == []


def test_a_close_to_a_verifier_that_was_left_stands_beside_what_is_under_way() -> None:
    story = good()
    story.sends(window(1, 0, 3, (), is_close=True), is_acknowledged=False)
    assert story.violations() == []


def test_an_unfinished_answer_passes_as_far_as_it_is_the_targets() -> None:
    right = Story().sends(opening()).begins().answers(verdict(1, 0, 3, (4, 5))).shows((4, 5))
    wrong = Story().sends(opening()).begins().answers(verdict(1, 0, 3, (4, 9))).shows((4, 9))
    assert right.rules() == set()
    assert wrong.rules() == {"target"}


BROKEN: dict[str, tuple[str, Story]] = {
    "two verifiers disagree": ("text", good().answers(verdict(1, 1, 4, (5, 8)), "v2#1", is_received=False)),
    "a checkpoint is another text": ("text", good().keeps((1, 2, 9))),
    "a token is shown twice": ("text", Story().sends(opening()).begins().shows((4, 4)).finishes()),
    "tokens are shown in the wrong order": ("text", Story().begins().shows((5, 4, 6, 7)).finishes()),
    "a token is not shown": ("shown", Story().begins().shows((4, 5, 6)).finishes()),
    "a turn ends that never began": ("shown", Story().finishes()),
    "the target says something else": ("target", Story().begins().shows((4, 9)).finishes((4, 9))),
    "the answer is cut short": ("target", Story().begins().shows((4, 5)).finishes((4, 5))),
    "two windows of one name": (
        "name",
        Story().sends(window(1, 1, 3, (4,))).sends(window(1, 1, 3, (5,))),
    ),
    "a generation falls": ("name", Story().sends(opening(3)).sends(opening(2))),
    "two unacknowledged windows": (
        "gate",
        Story().sends(opening(), is_acknowledged=False).sends(window(1, 1, 3, (4,))),
    ),
    "the device forgets": (
        "forgotten",
        Story().sends(opening(1, (*PROMPT, 4))).sends(opening(2, PROMPT)),
    ),
    "a hash of another text": ("hash", Story().sends(opening()).sends(window(1, 1, 3, (), hash=hash_at(2)))),
    "a verdict out of nowhere": (
        "source",
        Story().tell("received", topic=VERDICT.topic("f", **NAMES), payload="{}"),
    ),
    "a turn fails": ("failed", Story().begins().tell("failed", uid=UID, error="no")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_finds_what_breaks_it(name: str) -> None:
    rule, story = BROKEN[name]
    assert rule in story.rules()
