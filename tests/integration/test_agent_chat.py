"""The device's agent against the real verifier service on a real broker, with table models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from device_agent.actions import Notice
from device_agent.agent import DeviceAgent
from device_agent.chat import ChatOptions
from device_agent.chat_events import Failed, Finished, TextDelta
from fleet.operator import Operator
from protocol.codec import decode
from protocol.errors import LinkError, SessionError, VocabularyMismatchError
from protocol.fleet_messages import Telemetry
from protocol.link import Received, Subscription
from protocol.topics import TELEMETRY
from tests.integration.live_chat import alone, last, serving, wait_for
from tests.live_fleet import WAIT_S, LiveFleet, Recorder
from tests.table_device import PIECES, TableDrafter, table_agent, table_engine

SAMPLED = ChatOptions(temperature=0.9, top_p=0.95, seed=11)


@pytest.fixture
def agent(live_fleet: LiveFleet, tmp_path: Path) -> Iterator[DeviceAgent]:
    engine = table_engine()
    with serving(live_fleet, engine):
        made = table_agent(live_fleet, "dev-a", tmp_path, TableDrafter(engine))
        with made:
            made.wait_ready(WAIT_S)
            yield made


def test_turns_retries_and_resets_give_the_target_s_text(agent: DeviceAgent) -> None:
    with agent.chat(SAMPLED) as chat:
        first = last(chat.send("hello there"))
        second = last(chat.send("and again"))
        again = last(chat.retry())
        chat.reset()
        other = last(chat.send("hello there"))
    for stats in (first, second, again, other):
        assert list(stats.token_ids) == alone(stats, 40)
    assert second.prompt_ids[: len(first.prompt_ids) + first.tokens] == first.prompt_ids + first.token_ids
    assert (again.attempt, again.prompt_ids) == (1, second.prompt_ids)
    assert again.token_ids != second.token_ids
    assert other.token_ids == first.token_ids, "the same seed was asked for"


def test_the_events_make_up_the_text_without_cut_characters_or_control_tokens(agent: DeviceAgent) -> None:
    with agent.chat(ChatOptions(temperature=1.5, seed=3, max_tokens=200)) as chat:
        events = list(chat.send("stream"))
    deltas = [event for event in events if isinstance(event, TextDelta)]
    tokens = [token for delta in deltas for token in delta.tokens]
    end = events[-1]
    assert isinstance(end, Finished)
    assert tuple(tokens) == end.stats.token_ids
    text = b"".join(PIECES[token] for token in tokens).decode("utf-8", "replace")
    assert "".join(delta.text for delta in deltas) == text


def test_the_figures_are_those_of_the_turn(agent: DeviceAgent) -> None:
    with agent.chat(ChatOptions(temperature=1.3, seed=8)) as chat:
        stats = last(chat.send("hold on"))
    assert stats.verifier == "v1"
    assert stats.tokens == len(stats.token_ids)
    assert stats.rounds == len(stats.samples)
    assert 0 < stats.accepted <= stats.drafted
    assert sum(sample.n_committed for sample in stats.samples) == stats.tokens
    assert stats.time_to_first_token_s is not None
    assert 0 < stats.time_to_first_token_s <= stats.duration_s
    assert stats.tokens_per_s == pytest.approx(stats.tokens / stats.duration_s)


def test_a_round_is_cheap_on_the_link(agent: DeviceAgent) -> None:
    """Below 400 bytes each way, headers and PUBACKs included, as the link itself counts them."""
    with agent.chat(ChatOptions(temperature=0.0)) as chat:
        last(chat.send("open"))
        before = agent.traffic
        stats = last(chat.send("x"))
        after = agent.traffic
    assert stats.uplink_bytes / stats.rounds < 400
    assert stats.downlink_bytes / stats.rounds < 400
    assert stats.uplink_bytes <= after.uplink_bytes - before.uplink_bytes <= stats.uplink_bytes + 1500
    assert stats.downlink_bytes == pytest.approx(after.downlink_bytes - before.downlink_bytes, abs=600)


def test_several_sessions_of_one_device_at_once(agent: DeviceAgent) -> None:
    chats = [agent.chat(ChatOptions(temperature=0.8, seed=seed)) for seed in range(4)]
    turns = [chat.send("all together") for chat in chats]
    answers = [last(turn) for turn in turns]
    for stats in answers:
        assert list(stats.token_ids) == alone(stats, 40)
    assert len({stats.token_ids for stats in answers}) > 1
    for chat in chats:
        chat.close()


def test_stop_ends_the_turn_and_the_next_goes_on_after_it(agent: DeviceAgent) -> None:
    with agent.chat(ChatOptions(temperature=1.2, seed=5, max_tokens=400)) as chat:
        events = chat.send("a long story")
        begun = list(islice(events, 2))
        chat.stop()
        end = [*begun, *events][-1]
        assert isinstance(end, Finished)
        follow = last(chat.send("go on"))
    expected = alone(end.stats, 400)
    assert list(end.stats.token_ids) == expected[: end.stats.tokens]
    assert list(follow.token_ids) == alone(follow, 400)


@pytest.mark.parametrize("message", ["", "   \n"])
def test_an_empty_message_is_refused_and_harms_nothing(agent: DeviceAgent, message: str) -> None:
    with agent.chat() as chat:
        with pytest.raises(SessionError, match="empty"):
            chat.send(message)
        assert last(chat.send("but this")).tokens


def test_a_message_longer_than_the_context_is_refused_and_harms_nothing(agent: DeviceAgent) -> None:
    with agent.chat() as chat:
        with pytest.raises(SessionError, match="512"):
            chat.send("x" * 600)
        assert last(chat.send("short")).tokens


def test_a_second_turn_while_one_is_under_way_is_refused(agent: DeviceAgent) -> None:
    with agent.chat(ChatOptions(temperature=1.2, max_tokens=400)) as chat:
        events = chat.send("one")
        with pytest.raises(SessionError, match="under way"):
            chat.send("two")
        list(events)


def test_the_ninth_conversation_is_refused(agent: DeviceAgent) -> None:
    chats = [agent.chat() for _ in range(8)]
    with pytest.raises(SessionError, match="8 conversations"):
        agent.chat()
    chats[3].close()
    agent.chat().close()


def test_closing_leaves_nothing_behind(agent: DeviceAgent) -> None:
    with agent.chat() as chat:
        last(chat.send("forget me"))
    assert not list(agent.config.journal_directory.glob("*.journal"))


def test_a_drafter_that_breaks_is_told_and_the_answer_is_the_same(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    engine = table_engine()
    drafter = TableDrafter(engine)
    drafter.is_failing = True
    with serving(live_fleet, engine), table_agent(live_fleet, "dev-a", tmp_path, drafter) as agent:
        agent.wait_ready(WAIT_S)
        with agent.chat(SAMPLED) as chat:
            events = list(chat.send("alone"))
    assert [event.kind for event in events if isinstance(event, Notice)] == ["drafter_failed"]
    assert list(last(iter(events)).token_ids) == alone(last(iter(events)), 40)


def test_another_vocabulary_is_refused_with_both_named_before_any_draft(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    engine = table_engine()
    drafter = TableDrafter(engine, fingerprint="fedcba9876543210")
    with serving(live_fleet, engine), table_agent(live_fleet, "dev-a", tmp_path, drafter) as agent:
        with pytest.raises(VocabularyMismatchError) as caught:
            agent.wait_ready(WAIT_S)
        assert "fedcba9876543210" in str(caught.value)
        assert engine.info.vocabulary in str(caught.value)
        with pytest.raises(VocabularyMismatchError):
            agent.chat()
    assert drafter.n_drafts == 0


def test_no_verifier_is_said(live_fleet: LiveFleet, tmp_path: Path) -> None:
    with (
        table_agent(live_fleet, "dev-a", tmp_path, TableDrafter(table_engine())) as agent,
        pytest.raises(LinkError, match="no verifier") as caught,
    ):
        agent.wait_ready(1.0)
    assert caught.value.hint


def test_no_broker_is_said(own_fleet: LiveFleet, tmp_path: Path) -> None:
    agent = table_agent(own_fleet, "dev-a", tmp_path, TableDrafter(table_engine()))
    own_fleet.broker.kill()
    with agent, pytest.raises(LinkError):
        agent.wait_ready(1.0)


def test_a_restarted_device_resumes_its_last_conversation(live_fleet: LiveFleet, tmp_path: Path) -> None:
    engine = table_engine()
    with serving(live_fleet, engine):
        with table_agent(live_fleet, "dev-a", tmp_path, TableDrafter(engine)) as agent:
            agent.wait_ready(WAIT_S)
            first = last(agent.chat(SAMPLED).send("remember"))
        with table_agent(live_fleet, "dev-a", tmp_path, TableDrafter(engine)) as agent:
            agent.wait_ready(WAIT_S)
            chat = agent.chat(SAMPLED, resume=True)
            assert chat.tokens == first.prompt_ids + first.token_ids
            assert not chat.is_interrupted
            second = last(chat.send("what was it"))
            assert second.prompt_ids[: len(chat.tokens)] == second.prompt_ids
            assert list(second.token_ids) == alone(second, 40)
            assert second.seed == first.seed
            chat.close()
            with pytest.raises(SessionError, match="resume"):
                agent.chat(resume=True)


def test_a_device_killed_in_the_middle_of_an_answer_finishes_it(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    """What is on disk at that moment is given to another process, which must come to the same text."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    engine = table_engine()
    with serving(live_fleet, engine):
        with table_agent(live_fleet, "dev-a", first, TableDrafter(engine, error_rate=1.0)) as agent:
            agent.wait_ready(WAIT_S)
            events = agent.chat(ChatOptions(temperature=1.3, seed=8, max_tokens=400)).send("hold on")
            begun = list(islice(events, 3))
            shutil.copytree(first / "journal", second / "journal")
            list(events)
        with table_agent(live_fleet, "dev-b", second, TableDrafter(engine)) as agent:
            agent.wait_ready(WAIT_S)
            chat = agent.chat(resume=True)
            assert chat.is_interrupted
            shown = tuple(token for event in begun if isinstance(event, TextDelta) for token in event.tokens)
            rest = list(chat.continue_answer())
            chat.close()
    stats = last(iter(rest))
    assert stats.token_ids[: len(shown)] == shown
    assert list(stats.token_ids) == alone(stats, 400)


def test_the_fleet_hears_of_a_turn_s_rates(live_fleet: LiveFleet, agent: DeviceAgent) -> None:
    recorder = Recorder()
    topic = TELEMETRY.topic("f", d="dev-a")
    with live_fleet.link("fleet.ops", recorder) as link:
        link.subscribe([Subscription(topic, qos=0)])
        link.wait_subscribed(WAIT_S)
        with agent.chat(ChatOptions(temperature=1.3, seed=8)) as chat:
            stats = last(chat.send("hold on"))
        message = recorder.next(Received)
    telemetry = decode(Telemetry, message.payload)
    assert telemetry.tokens_per_s == pytest.approx(stats.tokens_per_s, rel=0.5)
    assert telemetry.acceptance == pytest.approx(stats.accepted / stats.drafted)


def test_a_verifier_restart_in_the_middle_changes_nothing(live_fleet: LiveFleet, tmp_path: Path) -> None:
    with table_agent(
        live_fleet, "dev-a", tmp_path, TableDrafter(table_engine(), error_rate=1.0), max_draft=1
    ) as agent:
        with serving(live_fleet, table_engine()):
            agent.wait_ready(WAIT_S)
            chat = agent.chat(ChatOptions(temperature=1.3, seed=8, max_tokens=400))
            events = chat.send("hold on")
            begun = list(islice(events, 3))
        with serving(live_fleet, table_engine()):
            rest = list(events)
            chat.close()
    everything = [*begun, *rest]
    end = everything[-1]
    assert isinstance(end, Finished), end
    assert list(end.stats.token_ids) == alone(end.stats, 400)


def test_a_second_verifier_takes_over(live_fleet: LiveFleet, tmp_path: Path) -> None:
    with (
        serving(live_fleet, table_engine(), "v2"),
        table_agent(
            live_fleet, "dev-a", tmp_path, TableDrafter(table_engine(), error_rate=1.0), verifier="v1"
        ) as agent,
    ):
        with serving(live_fleet, table_engine(), "v1"):
            agent.wait_ready(WAIT_S)
            wait_for(lambda: agent.call(lambda: agent._adverts.alive) == {"v1", "v2"})
            chat = agent.chat(ChatOptions(temperature=1.3, seed=8, max_tokens=400))
            assert chat.verifier == "v1"
            events = chat.send("hold on")
            list(islice(events, 3))
        end = list(events)[-1]
        assert isinstance(end, Finished), end
        assert list(end.stats.token_ids) == alone(end.stats, 400)
        assert list(last(chat.send("more")).token_ids)
        assert chat.verifier == "v2"
        chat.close()


def test_a_verifier_with_another_target_is_no_failover(live_fleet: LiveFleet, tmp_path: Path) -> None:
    with (
        serving(live_fleet, table_engine(seed=1), "v2"),
        table_agent(live_fleet, "dev-a", tmp_path, TableDrafter(table_engine()), verifier="v1") as agent,
    ):
        with serving(live_fleet, table_engine(), "v1"):
            agent.wait_ready(WAIT_S)
            wait_for(lambda: agent.call(lambda: agent._adverts.alive) == {"v1", "v2"})
            chat = agent.chat(SAMPLED)
            assert chat.verifier == "v1"
            last(chat.send("first"))
        wait_for(lambda: agent.call(lambda: chat._live.machine.is_seeking))
        events = chat.send("second")
        assert agent.call(lambda: chat._live.machine.is_active)
        with serving(live_fleet, table_engine(), "v1"):
            stats = last(events)
            assert stats.verifier == "v1"
            assert list(stats.token_ids) == alone(stats, 40)
            chat.close()


def test_a_broker_restart_in_the_middle_is_told_and_changes_nothing(
    own_fleet: LiveFleet, tmp_path: Path
) -> None:
    engine = table_engine()
    drafter = TableDrafter(engine, error_rate=1.0)
    with serving(own_fleet, engine), table_agent(own_fleet, "dev-a", tmp_path, drafter) as agent:
        agent.wait_ready(WAIT_S)
        chat = agent.chat(ChatOptions(temperature=1.3, seed=8, max_tokens=400))
        events = chat.send("hold on")
        begun = list(islice(events, 3))
        own_fleet.broker.restart(keep_persistence=False)
        everything = [*begun, *events]
        chat.close()
    end = everything[-1]
    assert isinstance(end, Finished), end
    assert list(end.stats.token_ids) == alone(end.stats, 400)
    kinds = [event.kind for event in everything if isinstance(event, Notice)]
    assert kinds.count("link_lost") == kinds.count("link_back") == 1


def test_a_full_disk_ends_the_turn_with_its_sentence(
    agent: DeviceAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    chat = agent.chat()
    with monkeypatch.context() as patch:
        patch.setattr("device_agent.journal.os.fsync", full)
        end = list(chat.send("save me"))[-1]
    assert isinstance(end, Failed)
    assert "No space left" in str(end.error)
    assert last(chat.send("now there is room")).tokens
    chat.close()


def test_p17_a_cloned_identity_is_said_and_one_of_the_two_leaves(
    own_fleet: LiveFleet, tmp_path: Path
) -> None:
    """Two boards with one identity kick each other off: one sees the other's birth, stops and says so.

    The other says so too: its birth takes the place of the last word of the one that stopped.
    """
    homes = tmp_path / "one", tmp_path / "two"
    for home in homes:
        home.mkdir()
    engine = table_engine()
    with serving(own_fleet, engine):
        agents = [table_agent(own_fleet, "dev-a", home, TableDrafter(engine)) for home in homes]
        with agents[0]:
            agents[0].wait_ready(WAIT_S)
            with agents[1]:
                wait_for(lambda: any(agent.halt_reason for agent in agents))
                halted = next(agent for agent in agents if agent.halt_reason)
                assert "another board uses the identity dev-a" in halted.halt_reason
                with pytest.raises(LinkError, match="another board"):
                    halted.wait_ready(1.0)
                other = next(agent for agent in agents if agent is not halted)
                other.wait_ready(WAIT_S)
                with other.chat() as chat:
                    assert last(chat.send("still here")).tokens
                assert not other.halt_reason
                with Operator(own_fleet.endpoint("fleet.ops"), identity="fleet.ops", fleet="f") as operator:
                    wait_for(lambda: operator.show_device("dev-a").row.presence == "online")
                    assert "another board" in operator.show_device("dev-a").row.problem
