"""A device's duties: what it says of itself, whose wishes it takes, and each command at most once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.command_desk import MAX_RESULT_BYTES, RunCommand
from device_agent.device_facts import DeviceFacts
from device_agent.duties import STATUS_INTERVAL_S, FleetDuties
from device_agent.duties_memory import (
    MAX_LIVES,
    MAX_OPEN_COMMANDS,
    MAX_REMEMBERED_COMMANDS,
    MAX_RUNNING_COMMANDS,
    DutiesMemory,
)
from device_agent.fleet_actions import (
    Action,
    ApplySettings,
    Halt,
    Retain,
    Save,
    Send,
    Subscribe,
    Unsubscribe,
)
from device_agent.settings import Settings
from protocol.codec import decode, encode
from protocol.fleet_messages import (
    CommandRequest,
    CommandResponse,
    CommandState,
    Desired,
    DeviceStatus,
    Reported,
    SessionHealth,
    Telemetry,
)
from protocol.messages import MAX_PAYLOAD_BYTES

ROOT = "sled/1/home/device/pi-1"
FACTS = DeviceFacts("home", "pi-1", "life-2", boot_id="b", serial="s-own", agent_version="1", model="tiny")
ActionT = TypeVar("ActionT")


@pytest.fixture
def duties() -> FleetDuties:
    return make()


def make(memory: bytes | None = None, **own: Any) -> FleetDuties:
    return FleetDuties(FACTS, Settings(**own), DutiesMemory.load(memory), commands=("log",))


def of(kind: type[ActionT], actions: list[Action]) -> list[ActionT]:
    return [action for action in actions if isinstance(action, kind)]


def retained(actions: list[Action], topic: str) -> bytes:
    (payload,) = [action.payload for action in of(Retain, actions) if action.topic == f"{ROOT}/{topic}"]
    return payload


def wish(revision: int, **config: Any) -> bytes:
    return encode(Desired(revision=revision, config=config))


def request(command_id: str, name: str = "ping", **fields: Any) -> tuple[str, bytes]:
    return f"{ROOT}/command/{command_id}/request", encode(CommandRequest(id=command_id, name=name, **fields))


def states(actions: list[Action]) -> dict[str, CommandState]:
    response = decode(CommandResponse, retained(actions, "command/response"))
    return {state.id: state for state in response.commands}


def status(incarnation: str, *, is_online: bool = True, serial: str = "s-other", **fields: Any) -> bytes:
    return encode(DeviceStatus(is_online=is_online, incarnation=incarnation, serial=serial, **fields))


# ---- presence


def test_birth_will_and_farewell_name_this_life(duties: FleetDuties) -> None:
    birth = decode(DeviceStatus, retained(duties.start(0.0), "status"))
    will = decode(DeviceStatus, duties.will().payload)
    farewell = decode(DeviceStatus, duties.farewell()[1])
    assert {birth.incarnation, will.incarnation, farewell.incarnation} == {"life-2"}
    assert [(each.is_online, each.is_lost) for each in (birth, will, farewell)] == [
        (True, False),
        (False, True),
        (False, False),
    ]
    assert duties.will().topic == duties.farewell()[0] == f"{ROOT}/status"
    assert duties.will().is_retained


def test_the_own_birth_ends_the_look_at_the_own_status(duties: FleetDuties) -> None:
    assert f"{ROOT}/status" in {each.filter for each in duties.subscriptions()}
    assert duties.on_message(f"{ROOT}/status", status("life-2"), 0.1) == [Unsubscribe(f"{ROOT}/status")]
    (subscribe,) = of(Subscribe, duties.on_disconnected())
    assert subscribe.subscription.filter == f"{ROOT}/status"


def test_an_earlier_life_is_not_a_copy_even_where_it_is_forgotten(duties: FleetDuties) -> None:
    for payload in (status("life-1"), status("life-1", is_online=False)):
        said = decode(DeviceStatus, retained(duties.on_message(f"{ROOT}/status", payload, 0.0), "status"))
        assert (said.is_online, said.problem) == (True, "")


def test_p15_an_earlier_life_that_an_old_broker_brings_back_is_not_a_copy(duties: FleetDuties) -> None:
    """Its presence stands in a persistence file from before, and comes after our own birth was heard."""
    [save] = of(Save, duties.start(0.0))
    facts = replace(duties._facts, incarnation="life-3")
    later = FleetDuties(facts, Settings(), DutiesMemory.load(save.content))
    later.start(0.0)
    later.on_message(f"{ROOT}/status", status("life-3"), 0.0)
    assert later.on_message(f"{ROOT}/status", status("life-2"), 5.0) == []
    actions = later.on_message(f"{ROOT}/status", status("clone", others=("life-3",)), 6.0)
    assert decode(DeviceStatus, retained(actions, "status")).yields_to == "clone"


def test_p15_a_foreign_life_that_an_old_broker_brings_back_is_named_and_nothing_else(
    duties: FleetDuties,
) -> None:
    """A board that is no more, and would go first, does not answer; our presence takes its place at once."""
    duties.on_message(f"{ROOT}/status", status("life-2"), 0.0)
    for number in range(3):
        actions = duties.on_message(f"{ROOT}/status", status("clone"), 5.0 + number)
        said = decode(DeviceStatus, retained(actions, "status"))
        assert (said.is_online, said.others, said.yields_to, said.problem) == (True, ("clone",), "", "")


def test_only_the_latest_lives_are_remembered() -> None:
    memory = DutiesMemory()
    for number in range(MAX_LIVES + 5):
        memory = memory.with_life(f"life-{number}")
    assert memory.lives == tuple(f"life-{number}" for number in range(5, MAX_LIVES + 5))


def test_another_life_that_has_heard_of_the_own_is_a_copy_and_is_named(duties: FleetDuties) -> None:
    duties.on_message(f"{ROOT}/status", status("life-2"), 0.0)
    actions = duties.on_message(f"{ROOT}/status", status("clone", others=("life-2",)), 5.0)
    assert not of(Halt, actions), "the broker has yet to hear it"
    said = retained(actions, "status")
    assert duties.on_message(f"{ROOT}/status", status("clone"), 5.1) == []
    assert duties.on_message(f"{ROOT}/status", status("life-2"), 5.1) == [], "an echo from before"
    (halt,) = of(Halt, duties.on_message(f"{ROOT}/status", said, 5.2))
    assert "s-other" in halt.reason
    assert "s-own" in halt.reason
    assert said == duties.farewell()[1]
    farewell = decode(DeviceStatus, said)
    assert (farewell.is_online, farewell.problem, farewell.yields_to) == (False, halt.reason, "clone")
    assert duties.on_message(f"{ROOT}/status", status("clone"), 6.0) == [], "said once"


def test_the_life_that_comes_first_goes_on_and_says_at_once_that_there_is_another(
    duties: FleetDuties,
) -> None:
    duties.start(0.0)
    duties.on_message(f"{ROOT}/status", status("life-2"), 0.0)
    other = status("life-3", others=("life-2",))
    actions = duties.on_message(f"{ROOT}/status", other, 1.0)
    said = decode(DeviceStatus, retained(actions, "status"))
    assert (said.is_online, "s-other" in said.problem, "goes on" in said.problem) == (True, True, True)
    assert said.others == ("life-3",)
    assert duties.on_message(f"{ROOT}/status", other, 2.0) == actions, "whoever speaks again is answered"
    health = (SessionHealth(slot=0, verifier="v1"),)
    again = decode(DeviceStatus, retained(duties.on_sessions(health, 100.0), "status"))
    assert again.problem == said.problem, "for the rest of this life"


def test_the_own_will_of_a_short_cut_is_not_a_copy(duties: FleetDuties) -> None:
    duties.on_message(f"{ROOT}/status", status("life-2"), 0.0)
    assert duties.on_message(f"{ROOT}/status", duties.will().payload, 1.0) == []


def test_health_is_rewritten_at_most_every_few_seconds_and_only_when_it_changed(duties: FleetDuties) -> None:
    duties.start(0.0)
    first = (SessionHealth(slot=0, verifier="v1", n_tokens=5),)
    second = (SessionHealth(slot=0, verifier="v1", n_tokens=9),)
    assert duties.on_sessions((), 100.0) == [], "nothing to tell"
    assert decode(DeviceStatus, retained(duties.on_sessions(first, 100.0), "status")).sessions == first
    assert duties.on_sessions(second, 101.0) == []
    assert duties.wake_s == 100.0 + STATUS_INTERVAL_S
    assert duties.on_tick(104.9) == []
    assert decode(DeviceStatus, retained(duties.on_tick(105.0), "status")).sessions == second
    assert duties.wake_s is None
    assert duties.on_tick(200.0) == []


def test_telemetry_is_sent_once_per_interval_and_never_when_idle() -> None:
    duties = make(telemetry_interval_s=10.0)

    def busy(now_s: float) -> list[Action]:
        return duties.on_rates(
            tokens_per_s=now_s, acceptance=0.5, round_ms=1.0, draft_tokens_per_s=1.0, now_s=now_s
        )

    (sent,) = of(Send, busy(100.0))
    assert sent.topic == f"{ROOT}/telemetry"
    assert busy(101.0) == busy(105.0) == []
    assert duties.wake_s == 110.0
    (late,) = of(Send, duties.on_tick(110.0))
    assert decode(Telemetry, late.payload).tokens_per_s == 105.0
    assert duties.wake_s is None
    assert duties.on_tick(500.0) == []


def test_telemetry_can_be_switched_off() -> None:
    duties = make(telemetry_interval_s=0.0)
    rates = {"tokens_per_s": 1.0, "acceptance": 0.5, "round_ms": 1.0, "draft_tokens_per_s": 1.0}
    assert duties.on_rates(**rates, now_s=100.0) == []
    assert duties.wake_s is None


# ---- configuration


def test_a_wish_is_saved_then_applied_then_reported(duties: FleetDuties) -> None:
    actions = duties.on_message(f"{ROOT}/desired", wish(3, temperature=0, max_draft=99), 0.0)
    assert [type(action) for action in actions] == [Save, ApplySettings, Retain]
    assert of(ApplySettings, actions)[0].settings.temperature == 0.0
    reported = decode(Reported, retained(actions, "reported"))
    assert (reported.revision, reported.config["temperature"]) == (3, 0.0)
    assert [refusal.key for refusal in reported.refusals] == ["max_draft"]
    assert "keep_checkpoint" not in reported.config


def test_the_fleet_may_say_how_fast_answers_are_read(duties: FleetDuties) -> None:
    actions = duties.on_message(f"{ROOT}/desired", wish(3, display_rate_tokens_s=7.5), 0.0)
    assert of(ApplySettings, actions)[0].settings.display_rate_tokens_s == 7.5
    assert decode(Reported, retained(actions, "reported")).config["display_rate_tokens_s"] == 7.5
    actions = duties.on_message(f"{ROOT}/desired", wish(4, display_rate_tokens_s=1000.5), 0.0)
    reported = decode(Reported, retained(actions, "reported"))
    assert reported.config["display_rate_tokens_s"] == 0.0
    assert [refusal.key for refusal in reported.refusals] == ["display_rate_tokens_s"]


def test_a_wish_survives_a_restart_and_is_reported_again(duties: FleetDuties) -> None:
    (save,) = of(Save, duties.on_message(f"{ROOT}/desired", wish(3, max_tokens=7, color=1), 0.0))
    again = make(save.content)
    assert again.settings.max_tokens == 7
    reported = decode(Reported, retained(again.start(0.0), "reported"))
    assert (reported.revision, [refusal.key for refusal in reported.refusals]) == (3, ["color"])


def test_p15_older_and_repeated_wishes_change_nothing(duties: FleetDuties) -> None:
    duties.on_message(f"{ROOT}/desired", wish(5, max_tokens=7), 0.0)
    assert duties.on_message(f"{ROOT}/desired", wish(4, max_tokens=9), 1.0) == []
    assert duties.on_message(f"{ROOT}/desired", wish(5, max_tokens=7), 2.0) == []
    assert duties.settings.max_tokens == 7


def test_of_two_wishes_with_one_revision_the_last_counts(duties: FleetDuties) -> None:
    """Two operators at the same moment: what the broker retains is the later one."""
    duties.on_message(f"{ROOT}/desired", wish(5, max_tokens=7), 0.0)
    duties.on_message(f"{ROOT}/desired", wish(5, max_tokens=8), 0.0)
    assert duties.settings.max_tokens == 8


def test_a_wish_taken_back_leaves_the_own_setting(duties: FleetDuties) -> None:
    duties.on_message(f"{ROOT}/desired", wish(1, max_tokens=7), 0.0)
    actions = duties.on_message(f"{ROOT}/desired", wish(2), 1.0)
    assert of(ApplySettings, actions)[0].settings == Settings()


def test_a_wish_that_cannot_be_read_is_answered_and_changes_nothing(duties: FleetDuties) -> None:
    actions = duties.on_message(f"{ROOT}/desired", b'{"v":1}', 0.0)
    assert [refusal.key for refusal in decode(Reported, retained(actions, "reported")).refusals] == [
        "desired"
    ]
    assert not of(Save, actions)
    assert duties.on_message(f"{ROOT}/desired", b"", 0.0) == []


# ---- commands


def test_a_ping_is_answered_once(duties: FleetDuties) -> None:
    actions = duties.on_message(*request("c1"), 0.0)
    assert [type(action) for action in actions] == [Save, Retain]
    state = states(actions)["c1"]
    assert (state.state, state.result["incarnation"]) == ("succeeded", "life-2")
    assert duties.on_message(*request("c1"), 1.0) == []


def test_a_command_is_remembered_before_it_runs_and_answered_when_it_ends(duties: FleetDuties) -> None:
    actions = duties.on_message(*request("c1", "log", arguments={"lines": 5}), 0.0)
    assert [type(action) for action in actions] == [Save, Retain, RunCommand]
    assert of(RunCommand, actions)[0].arguments == {"lines": 5}
    assert states(actions)["c1"].state == "running"
    assert states(duties.command_finished("c1", result={"n": 5}))["c1"].result == {"n": 5}
    assert duties.command_finished("c1", error="late") == [], "final states stay"


def test_a_failed_command_says_why(duties: FleetDuties) -> None:
    duties.on_message(*request("c1", "log"), 0.0)
    state = states(duties.command_finished("c1", error="no disk"))["c1"]
    assert (state.state, state.reason) == ("failed", "no disk")


def test_p15_a_command_is_never_run_twice_whatever_happens_in_between(duties: FleetDuties) -> None:
    """Killed while it ran, cleared, and brought back by a broker's old persistence file."""
    topic, payload = request("c1", "log")
    (save, *_) = of(Save, duties.on_message(topic, payload, 0.0))
    restarted = make(save.content)
    state = states(restarted.start(0.0))["c1"]
    assert (state.state, state.reason) == ("failed", "interrupted by a restart")
    assert not of(RunCommand, restarted.on_message(topic, payload, 1.0))
    assert states(restarted.on_message(topic, b"", 2.0)) == {}
    assert restarted.on_message(topic, payload, 3.0) == []


def test_unknown_broken_and_mislabelled_commands_are_rejected_with_a_reason(duties: FleetDuties) -> None:
    unknown = states(duties.on_message(*request("c1", "selfdestruct"), 0.0))["c1"]
    assert (unknown.state, unknown.reason) == ("rejected", "unknown command; this device knows log, ping")
    broken = states(duties.on_message(f"{ROOT}/command/c2/request", b"{", 0.0))["c2"]
    assert (broken.state, "not JSON" in broken.reason) == ("rejected", True)
    other = states(duties.on_message(f"{ROOT}/command/c3/request", request("c4")[1], 0.0))["c3"]
    assert (other.state, other.reason) == ("rejected", "id in topic and payload differ")
    assert duties.on_message(f"{ROOT}/command/Bad.Id/request", b"{}", 0.0) == []


def test_too_many_running_commands_are_refused(duties: FleetDuties) -> None:
    for index in range(MAX_RUNNING_COMMANDS):
        assert of(RunCommand, duties.on_message(*request(f"r{index}", "log"), 0.0))
    actions = duties.on_message(*request("more", "log"), 0.0)
    assert states(actions)["more"].reason == "too many commands are running"
    assert not of(RunCommand, actions)


def test_the_response_stays_bounded_however_many_commands_come(duties: FleetDuties) -> None:
    duties.on_message(*request("slow", "log"), 0.0)
    for index in range(MAX_REMEMBERED_COMMANDS + MAX_OPEN_COMMANDS):
        actions = duties.on_message(*request(f"c{index}", "x" * 40), 0.0)
    payload = retained(actions, "command/response")
    document = states(actions)
    assert len(document) == MAX_OPEN_COMMANDS
    assert "slow" in document, "what runs is not forgotten"
    assert len(payload) <= MAX_PAYLOAD_BYTES


def test_a_full_document_of_the_largest_results_fits_into_a_message(duties: FleetDuties) -> None:
    for index in range(MAX_OPEN_COMMANDS):
        command_id = f"{index:048d}"
        duties.on_message(*request(command_id, "log"), 0.0)
        actions = duties.command_finished(command_id, result={"t": "x" * (MAX_RESULT_BYTES - 8)})
    assert len(states(actions)) == MAX_OPEN_COMMANDS
    assert len(retained(actions, "command/response")) <= MAX_PAYLOAD_BYTES


def test_a_result_that_is_too_large_is_left_out_and_says_so(duties: FleetDuties) -> None:
    duties.on_message(*request("c1", "log"), 0.0)
    state = states(duties.command_finished("c1", result={"t": "x" * MAX_RESULT_BYTES}))["c1"]
    assert (state.state, state.result) == ("succeeded", {})
    assert "left out" in state.reason


# ---- anything


def test_damaged_memory_starts_anew() -> None:
    assert DutiesMemory.load(b"\0garbage") == DutiesMemory.load(None) == DutiesMemory()


def test_memory_comes_back_as_it_was_saved(duties: FleetDuties) -> None:
    duties.on_message(f"{ROOT}/desired", wish(3, system_prompt="ü"), 0.0)
    actions = duties.on_message(*request("c1"), 0.0)
    content = of(Save, actions)[-1].content
    assert DutiesMemory.load(content).dump() == content


@pytest.mark.parametrize(
    "topic", ["sled/1/home/verifier/v1/status", "sled/1/home/device/pi-2/desired", "x", f"{ROOT}/desired/x"]
)
def test_topics_of_others_are_ignored(duties: FleetDuties, topic: str) -> None:
    assert duties.on_message(topic, wish(1, max_tokens=1), 0.0) == []


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["status", "desired", "command/a/request", "command/b/request"]),
            st.one_of(
                st.binary(max_size=40),
                st.builds(
                    wish, st.integers(0, 3), max_tokens=st.one_of(st.integers(-1, 9), st.none(), st.text())
                ),
                st.builds(
                    lambda c, name: request(c, name)[1],
                    st.sampled_from("ab"),
                    st.sampled_from(["ping", "log"]),
                ),
                st.builds(status, st.sampled_from(["life-1", "life-2", "clone"])),
            ),
        ),
        max_size=12,
    )
)
def test_nothing_that_arrives_raises_and_nothing_goes_back_or_runs_twice(
    messages: list[tuple[str, bytes]],
) -> None:
    duties = make()
    revisions, runs = [0], []
    for topic, payload in messages:
        for action in duties.on_message(f"{ROOT}/{topic}", payload, 0.0):
            if isinstance(action, Retain) and action.topic.endswith("/reported"):
                revisions.append(decode(Reported, action.payload).revision)
            if isinstance(action, RunCommand):
                runs.append(action.id)
    assert revisions == sorted(revisions)
    assert len(runs) == len(set(runs))
