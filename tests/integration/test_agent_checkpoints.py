"""What the broker keeps of conversations: a device goes on from it, and nothing of it is left at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from device_agent.agent import DeviceAgent
from device_agent.chat import ChatOptions
from device_agent.chat_events import Finished
from device_agent.checkpoint_reader import CheckpointReader
from device_agent.kept import Kept
from protocol.errors import SessionError
from protocol.identifiers import SLOTS
from protocol.link import Published, Received, Subscription
from protocol.topics import STATE
from tests.integration.live_chat import alone, last, serving, wait_for
from tests.live_fleet import WAIT_S, LiveFleet, Recorder
from tests.table_device import TableDrafter, table_agent, table_engine
from tests.tcp_proxy import TcpProxy

LONG = ChatOptions(temperature=1.3, seed=8, max_tokens=400)


def at_broker(fleet: LiveFleet, device: str) -> list[tuple[str, int]]:
    """Verifier and slot of every checkpoint that the broker keeps of `device`, read as the device."""
    return [each.place for each in read(fleet, device)]


def read(fleet: LiveFleet, device: str) -> tuple[Kept, ...]:
    """All checkpoints of `device`."""
    readers: list[CheckpointReader] = []
    with fleet.link(device, lambda event: [reader.feed(event) for reader in readers] and None) as link:
        readers.append(CheckpointReader(link, "f", device))
        return readers[0].read("v1", WAIT_S)


@contextmanager
def served_agent(fleet: LiveFleet, home: Path) -> Iterator[DeviceAgent]:
    """A device that a verifier of its target is there for."""
    engine = table_engine()
    with serving(fleet, engine), table_agent(fleet, "dev-a", home, TableDrafter(engine)) as agent:
        agent.wait_ready(WAIT_S)
        yield agent


def two_homes(path: Path) -> tuple[Path, Path]:
    """The device's storage before and after it was lost."""
    homes = path / "first", path / "second"
    for home in homes:
        home.mkdir()
    return homes


def test_p16_a_device_that_lost_its_journal_goes_on_from_the_broker_s_copy_text_and_all(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    """Storage lost in the middle of an answer: the rest of it is what the target alone would have said."""
    first, second = two_homes(tmp_path)
    engine = table_engine()
    with serving(live_fleet, engine):
        with table_agent(live_fleet, "dev-a", first, TableDrafter(engine, error_rate=1.0)) as agent:
            agent.wait_ready(WAIT_S)
            events = agent.chat(LONG).send("hold on")
            list(islice(events, 3))
        with table_agent(live_fleet, "dev-a", second, TableDrafter(engine)) as agent:
            agent.wait_ready(WAIT_S)
            chat = agent.chat(resume=True)
            assert chat.seed == 8
            assert chat.is_interrupted
            assert "hold on" in chat.text
            opened_with = chat.tokens
            end = list(chat.continue_answer())[-1]
            assert isinstance(end, Finished)
            assert end.stats.prompt_ids == opened_with
            followed = last(chat.send("go on"))
            assert list(followed.token_ids) == alone(followed, 256)
            everything = followed.prompt_ids
            n_prompt = everything.index(2) + 1
            whole = dataclasses.replace(end.stats, prompt_ids=everything[:n_prompt])
            answer = list(everything[n_prompt : len(opened_with) + end.stats.tokens])
            assert answer == alone(whole, 400)
            chat.close()
        assert at_broker(live_fleet, "dev-a") == []


@pytest.mark.parametrize(("setting", "stated"), [({"display_rate_tokens_s": 4.5}, 4.5), ({}, None)])
def test_a_verifier_learns_how_fast_a_device_s_answers_are_read(
    live_fleet: LiveFleet, tmp_path: Path, setting: dict[str, float], stated: float | None
) -> None:
    engine = table_engine()
    with (
        serving(live_fleet, engine),
        table_agent(live_fleet, "dev-a", tmp_path, TableDrafter(engine), **setting) as agent,
    ):
        agent.wait_ready(WAIT_S)
        chat = agent.chat(LONG)
        last(chat.send("read on"))
        wait_for(lambda: bool(at_broker(live_fleet, "dev-a")))
        [kept] = read(live_fleet, "dev-a")
        assert kept.checkpoint.opening.display_rate_tokens_s == stated
        chat.close()


def test_a_conversation_that_had_ended_is_resumed_with_its_text(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    first, second = two_homes(tmp_path)
    engine = table_engine()
    with serving(live_fleet, engine):
        with table_agent(live_fleet, "dev-a", first, TableDrafter(engine)) as agent:
            agent.wait_ready(WAIT_S)
            said = last(agent.chat(ChatOptions(seed=3, temperature=0.9, max_tokens=60)).send("remember"))
        wait_for(
            lambda: (
                [len(each.checkpoint.tokens) for each in read(live_fleet, "dev-a")]
                == [len(said.prompt_ids) + said.tokens]
            )
        )
        with table_agent(live_fleet, "dev-a", second, TableDrafter(engine)) as agent:
            agent.wait_ready(WAIT_S)
            chat = agent.chat(resume=True)
            assert not chat.is_interrupted
            assert chat.tokens == said.prompt_ids + said.token_ids
            with pytest.raises(SessionError, match="no answer to try again"):
                chat.retry()
            again = last(chat.send("what was it"))
            assert again.seed == 3
            assert list(again.token_ids) == alone(again, 256)
            chat.close()
            with pytest.raises(SessionError, match="resume"):
                agent.chat(resume=True)


def test_the_journal_wins_over_the_broker_s_copy(live_fleet: LiveFleet, tmp_path: Path) -> None:
    """The broker's copy is of another conversation here, and is not even asked for."""
    first, second = two_homes(tmp_path)
    engine = table_engine()
    with serving(live_fleet, engine):
        with table_agent(live_fleet, "dev-a", first, TableDrafter(engine)) as agent:
            agent.wait_ready(WAIT_S)
            mine = last(agent.chat(ChatOptions(seed=1, max_tokens=20)).send("mine"))
        with table_agent(live_fleet, "dev-a", second, TableDrafter(engine)) as agent:
            agent.wait_ready(WAIT_S)
            last(agent.chat(ChatOptions(seed=2, max_tokens=20)).send("another"))
        with table_agent(live_fleet, "dev-a", first, TableDrafter(engine)) as agent:
            agent.wait_ready(WAIT_S)
            chat = agent.chat(resume=True)
            assert chat.tokens == mine.prompt_ids + mine.token_ids
            chat.close()
        assert at_broker(live_fleet, "dev-a") == []


def test_a_closed_conversation_is_not_brought_back_by_a_copy_that_was_read_before(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    with served_agent(live_fleet, tmp_path) as agent:
        chat = agent.chat(ChatOptions(seed=1, max_tokens=20))
        last(chat.send("for once only"))
        found = agent._checkpoints.read("v1", WAIT_S)
        assert found
        chat.close()
        agent.call(lambda: agent.desk.adopt(found))
        assert not agent.call(lambda: agent.desk.has_journals)


def test_the_copy_of_a_conversation_that_makes_room_for_a_ninth_goes_at_once(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    with served_agent(live_fleet, tmp_path) as agent:
        for _ in SLOTS:
            chat = agent.chat(ChatOptions(max_tokens=2))
            last(chat.send("hold on"))
            agent.call(partial(agent.desk.let_go, chat._live))
        assert {each.slot for each in agent._checkpoints.read("v1", WAIT_S)} == set(SLOTS)
        agent.chat()
        assert {each.slot for each in agent._checkpoints.read("v1", WAIT_S)} == set(SLOTS) - {0}
        for kept in agent._checkpoints.read("v1", WAIT_S):
            agent.call(partial(agent.desk._clear_checkpoint, kept.verifier, kept.slot))


def test_with_checkpoints_switched_off_the_broker_gets_none(live_fleet: LiveFleet, tmp_path: Path) -> None:
    engine = table_engine()
    with serving(live_fleet, engine):
        agent = table_agent(live_fleet, "dev-b", tmp_path, TableDrafter(engine), keep_checkpoint=False)
        with agent:
            agent.wait_ready(WAIT_S)
            last(agent.chat(LONG).send("private"))
        assert at_broker(live_fleet, "dev-b") == []


def test_p22_a_copy_of_a_verifier_that_never_returns_expires_by_itself(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    """Sixty seconds here: what the broker keeps says how long it stays, and its age is told by that."""
    engine = table_engine()
    with serving(live_fleet, engine):
        agent = table_agent(live_fleet, "dev-e", tmp_path, TableDrafter(engine), checkpoint_retention_s=60)
        with agent:
            agent.wait_ready(WAIT_S)
            last(agent.chat(LONG).send("hello"))
    recorder = Recorder()
    with live_fleet.link("dev-e", recorder) as link:
        link.subscribe([Subscription(STATE.filter("f", d="dev-e"), qos=0)])
        state = recorder.next(Received, lambda event: STATE.parse(event.topic) is not None)
    assert state.expires_in_s is not None
    assert 0 < state.expires_in_s <= 60
    kept = Kept.of(state)
    assert kept is not None
    assert kept.age_s == 60 - state.expires_in_s


def test_p22_a_copy_whose_time_is_over_is_given_to_nobody(live_fleet: LiveFleet) -> None:
    """The broker drops it by itself; two seconds here, as written by a verifier that is gone."""
    topic = STATE.topic("f", v="v1", d="dev-f", n=0)
    with live_fleet.link("verifier.v1", writer := Recorder()) as link:
        link.publish(topic, b"kept for a while", is_retained=True, expiry_s=2)
        writer.next(Published)

    def is_there() -> bool:
        with live_fleet.link("dev-f", reader := Recorder()) as link:
            link.subscribe([Subscription(topic, qos=0)])
            link.wait_subscribed(WAIT_S)
            token = link.publish(topic, b"")
            reader.next(Published, lambda event: event.token == token)
            return any(isinstance(event, Received) and event.is_retained for event in reader.events)

    assert is_there()
    wait_for(lambda: not is_there())


def test_after_a_failover_the_copy_at_the_other_verifier_is_cleared(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    drafter = TableDrafter(table_engine(), error_rate=1.0)
    with (
        serving(live_fleet, table_engine(), "v2"),
        table_agent(live_fleet, "dev-c", tmp_path, drafter, verifier="v1") as agent,
    ):
        with serving(live_fleet, table_engine(), "v1"):
            agent.wait_ready(WAIT_S)
            wait_for(lambda: agent.call(lambda: agent._adverts.alive) == {"v1", "v2"})
            chat = agent.chat(LONG)
            assert last(chat.send("hold on")).verifier == "v1"
        assert last(chat.send("and on")).verifier == "v2"
        agent.stop()
        assert at_broker(live_fleet, "dev-c") == [("v2", 0)]


def test_p3_a_verifier_back_from_the_dead_is_told_that_the_session_has_moved(
    own_fleet: LiveFleet, tmp_path: Path
) -> None:
    """It wrote its checkpoint again when it came back: that is cleared and its KV cache freed."""
    drafter = TableDrafter(table_engine(), error_rate=1.0)
    with (
        TcpProxy("127.0.0.1", own_fleet.broker.backend_port) as proxy,
        serving(own_fleet, table_engine(), "v2"),
        serving(
            own_fleet,
            table_engine(),
            "v1",
            dataclasses.replace(own_fleet.endpoint("verifier.v1"), port=proxy.port),
        ) as returning,
        table_agent(own_fleet, "dev-a", tmp_path, drafter, verifier="v1") as agent,
    ):
        agent.wait_ready(WAIT_S)
        wait_for(lambda: agent.call(lambda: agent._adverts.alive) == {"v1", "v2"})
        chat = agent.chat(LONG)
        assert last(chat.send("hold on")).verifier == "v1"
        proxy.cut()
        moved = last(chat.send("and on"))
        assert moved.verifier == "v2"
        assert returning.n_sessions == 1
        proxy.mend()
        wait_for(lambda: returning.n_sessions == 0)
        assert list(moved.token_ids) == alone(moved, 400)
        agent.stop()
        wait_for(lambda: at_broker(own_fleet, "dev-a") == [("v2", 0)])
