"""A lone question does not wait for ever for a verifier that takes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from cli.chat.patience import begun_within
from device_agent.actions import Notice, NoticeKind
from device_agent.chat_events import ChatEvent, Finished, TextDelta, TurnStats
from protocol.errors import LinkError

LONG_S = 30.0
STATS = TurnStats(
    verifier="v1", tokens=0, rounds=0, drafted=0, accepted=0, uplink_bytes=0, downlink_bytes=0,
    max_uplink_bytes_per_round=0, max_downlink_bytes_per_round=0, duration_s=0.0, time_to_first_token_s=None,
    tokens_per_s=0.0, temperature=0.0, top_k=0, top_p=1.0, seed=0, attempt=0, prompt_ids=(), token_ids=(),
    samples=(),
)  # fmt: skip


class Turn:
    """A turn whose events come from a queue; `stop` ends it as a chat's does."""

    def __init__(self, *events: ChatEvent) -> None:
        self._events: SimpleQueue[ChatEvent] = SimpleQueue()
        self.n_stopped = 0
        for event in events:
            self._events.put(event)

    def __iter__(self) -> Iterator[ChatEvent]:
        while True:
            event = self._events.get(timeout=LONG_S)
            yield event
            if isinstance(event, Finished):
                return

    def stop(self) -> None:
        self.n_stopped += 1
        self._events.put(Finished("stopped", STATS))


@pytest.mark.parametrize("kind", ["verifier_lost", "verifier_busy", "link_lost"])
def test_a_question_that_nobody_takes_is_given_up_with_the_reason(kind: NoticeKind) -> None:
    turn = Turn(Notice(kind, "nobody is there"))
    with pytest.raises(LinkError, match=r"no answer began within 0\.05 s: nobody is there"):
        list(begun_within(iter(turn), 0.05, turn.stop))
    assert turn.n_stopped == 1


@pytest.mark.parametrize(
    "news",
    [Notice("verifier_back", "v1 answers"), Notice("link_back", "back"), TextDelta("a", (1,))],
    ids=["verifier back", "link back", "text"],
)
def test_a_question_that_is_taken_after_all_is_not(news: ChatEvent) -> None:
    turn = Turn(Notice("verifier_lost", "looking"), news)
    events = begun_within(iter(turn), 0.05, turn.stop)
    assert [next(events), next(events)][-1] == news
    time.sleep(0.15)
    assert turn.n_stopped == 0
    turn.stop()
    assert isinstance([*events][-1], Finished), "stopped by its user"


def test_an_answer_that_has_begun_waits_for_as_long_as_it_takes() -> None:
    turn = Turn(TextDelta("a", (1,)), Notice("link_lost", "the link is down"))
    events = begun_within(iter(turn), 0.05, turn.stop)
    assert len([next(events), next(events)]) == 2
    time.sleep(0.15)
    assert turn.n_stopped == 0
    events.close()
