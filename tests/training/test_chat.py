"""Conversations in their line form, their rendered form and the chat template."""

from random import Random

import numpy as np
from jinja2 import Environment

from training import drills, household, smalltalk
from training.agreement import answer_places, per_window
from training.batches import system_end
from training.chat import ASSISTANT, END, SPECIAL_TOKENS, TEMPLATE, Message, parsed, rendered
from training.tales import TALES

SYSTEM = "You are 'Al'.\nDevices:\nlight.hall 'Hall Light' = off\ncover.bay 'Bay Blinds' = open"
CALL = 'Call: {"name": "HassTurnOn", "arguments": {"name": "Hall Light"}}'
DOCUMENT = f"System: {SYSTEM}\nUser: light on\nAssistant: on it.\n{CALL}\nResult: Success\nAssistant: done."


def test_a_call_belongs_to_the_answer_before_it() -> None:
    messages = parsed(DOCUMENT)
    assert [m.role for m in messages] == ["system", "user", "assistant", "result", "assistant"]
    assert messages[0].content == SYSTEM
    assert messages[2].content == f"on it.\n{CALL}"


def test_the_template_renders_what_training_rendered() -> None:
    messages = parsed(DOCUMENT)
    documents = [{"role": m.role.replace("result", "tool"), "content": m.content} for m in messages]
    template = Environment(autoescape=False).from_string(TEMPLATE)  # noqa: S701
    text = template.render(bos_token="<|endoftext|>", messages=documents, add_generation_prompt=True)
    assert text == rendered(messages, awaits_answer=True)


def test_slots_are_filled_from_request_and_call_or_the_sample_is_dropped() -> None:
    request = Message("user", "make the hall light plum")
    answer = Message("assistant", f"setting it to <color>.\n{CALL}")
    filled = household.mended([request, answer], frozenset({"plum"}))
    assert filled is not None
    assert filled[1].content.startswith("setting it to plum.")
    assert household.mended([request, answer], frozenset()) is None
    timer = Message("user", "set the egg timer for two minutes and ten seconds.")
    timed = household.mended([timer, Message("assistant", "starts for <duration>.")], frozenset())
    assert timed is not None
    assert timed[1].content == "starts for two minutes and ten seconds."


def test_malformed_calls_are_no_calls() -> None:
    assert household.calls("Call: {nonsense\nCall: [1]\nCall: {}") == []
    assert household.calls(CALL)[0].arguments == {"name": "Hall Light"}


def test_small_talk_knows_the_house() -> None:
    said = [smalltalk.household_thread(SYSTEM, Random(seed))[2].content for seed in range(60)]
    assert any("Hall Light and Bay Blinds" in text for text in said)
    assert any("2 devices" in text for text in said)


def test_a_story_is_told_in_whole_sentences() -> None:
    story = "Once there was a fox. It ran.\nIt slept! Nobody saw it again, they say."
    assert smalltalk.opening(story, 8) == "Once there was a fox. It ran."


def test_a_tale_is_told_whole_whether_asked_for_or_begun() -> None:
    for seed in range(20):
        system, user, answer = smalltalk.tale_thread(TALES[0], SYSTEM, Random(seed))
        assert (system.content, answer.content) == (SYSTEM, TALES[0].text)
        assert "story" in user.content.lower() or TALES[0].text.lower().startswith(user.content.lower()[:12])


def test_places_and_windows() -> None:
    assistant, end = SPECIAL_TOKENS.index(ASSISTANT), SPECIAL_TOKENS.index(END)
    assert answer_places([0, 9, assistant, 7, 8, end, 9, assistant, 5]) == [3, 4, 5, 8]
    assert per_window([True, True, False, True, True], 2) == 2.0
    assert per_window([False] * 4, 2) == 0.0
    system = SPECIAL_TOKENS.index("<|system|>")
    assert system_end(np.array([0, system, 9, end, 9], dtype=np.uint16)) == 4
    assert system_end(np.array([0, 9, end], dtype=np.uint16)) == 0


def test_drills_call_listed_devices_by_their_names() -> None:
    for seed in range(40):
        thread = next(drills.threads([SYSTEM], Random(seed)))
        assert [m.role for m in thread[:3]] == ["system", "user", "assistant"]
        named = [c.arguments["name"] for m in thread for c in household.calls(m.content)]
        assert set(named) <= {"Hall Light", "Bay Blinds"}
        assert not any("{" in m.content for m in thread if m.role == "user")
