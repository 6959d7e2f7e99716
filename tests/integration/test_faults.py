"""Each fault alone, on a real broker: the answer is the target's, whatever happened on the way."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

import device_agent.agent
from bench.link_emulator import EmulatedLink, LinkEmulator
from device_agent.agent import DeviceAgent
from device_agent.chat import ChatOptions
from device_agent.chat_events import ChatEvent, Finished, TextDelta
from protocol.codec import encode
from protocol.link import Endpoint, Link, LinkEvent, Published, Received, Subscription
from protocol.messages import Verdict
from protocol.topics import STATE, VERDICT, WINDOW
from tests.integration.live_chat import alone, last, serving, wait_for
from tests.integration.live_device import PacedEngine
from tests.live_fleet import WAIT_S, LiveFleet, Recorder
from tests.table_device import PIECES, STOP_ID, TableDrafter, table_agent, table_engine

ANSWER = 120
OPTIONS = ChatOptions(temperature=1.3, seed=8, max_tokens=ANSWER)


def paced_engine(step_s: float = 0.01) -> PacedEngine:
    """The tests' target, taking its time, so that there is a middle to fail in."""
    return PacedEngine(step_s, vocab_size=len(PIECES), stop_ids=frozenset({STOP_ID}))


class EmulatedFleet(LiveFleet):
    """A fleet whose identities reach the broker over emulated links."""

    def __init__(self, fleet: LiveFleet, emulator: LinkEmulator) -> None:
        self.broker, self.directory = fleet.broker, fleet.directory
        self._fleet = fleet
        self._emulator = emulator
        self.links: dict[str, EmulatedLink] = {}

    def endpoint(self, identity: str) -> Endpoint:
        direct = self._fleet.endpoint(identity)
        if identity not in self.links:
            self.links[identity] = self._emulator.add(direct.host, direct.port)
        return dataclasses.replace(direct, port=self.links[identity].port)


@pytest.fixture
def emulated(own_fleet: LiveFleet) -> Iterator[EmulatedFleet]:
    with LinkEmulator() as emulator:
        yield EmulatedFleet(own_fleet, emulator)


@contextmanager
def device(fleet: LiveFleet, home: Path, **settings: Any) -> Iterator[DeviceAgent]:
    """A device that is ready, with drafts that are often wrong."""
    home.mkdir(exist_ok=True)
    drafter = TableDrafter(table_engine(), error_rate=0.5)
    with table_agent(fleet, "dev-a", home, drafter, **settings) as agent:
        agent.wait_ready(WAIT_S)
        yield agent


def finish(events: Iterator[ChatEvent], begun: list[ChatEvent] | None = None) -> None:
    """The turn finishes with the target's text, shown once and in order."""
    everything = [*(begun or ()), *events]
    end = everything[-1]
    assert isinstance(end, Finished), end
    assert list(end.stats.token_ids) == alone(end.stats, ANSWER)
    shown = [token for event in everything if isinstance(event, TextDelta) for token in event.tokens]
    assert tuple(shown) == end.stats.token_ids


# ---- one message at a time


class Meddler:
    """What happens to a device's messages, by their number: `windows` and `verdicts` that come to harm."""

    def __init__(
        self, *, is_lost: bool, windows: tuple[int, ...] = (), verdicts: tuple[int, ...] = ()
    ) -> None:
        self.harmed = 0
        self._is_lost = is_lost
        self._windows, self._verdicts = windows, verdicts
        self._n_windows = self._n_verdicts = 0

    def copies_of_window(self, topic: str) -> int:
        if WINDOW.parse(topic) is None:
            return 1
        self._n_windows += 1
        return self._copies(self._n_windows in self._windows)

    def copies_of_verdict(self, topic: str) -> int:
        if VERDICT.parse(topic) is None:
            return 1
        self._n_verdicts += 1
        return self._copies(self._n_verdicts in self._verdicts)

    def _copies(self, is_harmed: bool) -> int:  # noqa: FBT001 - one flag
        self.harmed += is_harmed
        return 1 if not is_harmed else 0 if self._is_lost else 2

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on the agents' links are meddled with."""
        meddler = self

        class MeddledLink(Link):
            def __init__(
                self, endpoint: Any, options: Any, on_event: Callable[[LinkEvent], None], *rest: Any
            ) -> None:
                self._pass_on = on_event

                def meddled(event: LinkEvent) -> None:
                    n = meddler.copies_of_verdict(event.topic) if isinstance(event, Received) else 1
                    for _ in range(n):
                        on_event(event)

                super().__init__(endpoint, options, meddled, *rest)

            def publish(self, topic: str, payload: bytes, **options: Any) -> int:
                n = meddler.copies_of_window(topic)
                if n == 0:  # the broker took it, and then it was lost
                    token = self._outbox.skip_token()
                    self._pass_on(Published(token, 0, time.monotonic()))
                    return token
                if n == 2:
                    super().publish(topic, payload, **options)
                return super().publish(topic, payload, **options)

        monkeypatch.setattr(device_agent.agent, "Link", MeddledLink)


@pytest.mark.parametrize(
    "meddler",
    [
        pytest.param(Meddler(is_lost=False, windows=(1, 2, 4, 7)), id="duplicate window"),
        pytest.param(Meddler(is_lost=False, verdicts=(1, 2, 4, 7)), id="duplicate verdict"),
        pytest.param(Meddler(is_lost=True, windows=(4,)), id="lost window"),
        pytest.param(Meddler(is_lost=True, verdicts=(4,)), id="lost verdict"),
    ],
)
def test_a_message_that_comes_twice_or_never_changes_nothing(
    live_fleet: LiveFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meddler: Meddler
) -> None:
    meddler.install(monkeypatch)
    with (
        serving(live_fleet, table_engine()),
        device(live_fleet, tmp_path) as agent,
        agent.chat(OPTIONS) as chat,
    ):
        finish(chat.send("hold on"))
    assert meddler.harmed


def test_a_verdict_for_an_older_generation_changes_nothing(live_fleet: LiveFleet, tmp_path: Path) -> None:
    topic = VERDICT.topic("f", v="v1", d="dev-a", n=0)
    with (
        serving(live_fleet, paced_engine()),
        device(live_fleet, tmp_path) as agent,
        agent.chat(OPTIONS) as chat,
    ):
        finish(chat.send("hold on"))
        events = chat.send("go on")
        begun = list(islice(events, 2))
        machine = chat._live.machine
        assert machine.generation > 1
        for number in range(20):
            old = Verdict(uid=machine.uid, generation=1, round=number, start=0, tokens=(9, 9), n_accepted=0)
            agent._on_link_event(Received(topic, encode(old), is_retained=False, at_s=0.0))
        finish(events, begun)


# ---- the broker


@pytest.mark.parametrize("memory", ["none", "kept", "old"])
def test_a_broker_that_is_killed_and_comes_back(own_fleet: LiveFleet, tmp_path: Path, memory: str) -> None:
    """Without its memory, with it, and with one from an earlier conversation, whose checkpoint returns."""
    database = next(tmp_path.glob("broker")) / "mosquitto.db"
    if memory == "old":
        with serving(own_fleet, table_engine()), device(own_fleet, tmp_path / "home") as agent:
            last(agent.chat(OPTIONS).send("an older story"))
        own_fleet.broker.restart(keep_persistence=True)
        shutil.copy(database, tmp_path / "old.db")
    with (
        serving(own_fleet, paced_engine()),
        device(own_fleet, tmp_path / "home") as agent,
        agent.chat(OPTIONS) as chat,
    ):
        events = chat.send("hold on")
        begun = list(islice(events, 3))
        if memory == "kept":
            own_fleet.broker.stop()
        else:
            own_fleet.broker.kill()
        if memory == "old":
            shutil.copy(tmp_path / "old.db", database)
        own_fleet.broker.restart(keep_persistence=memory != "none")
        finish(events, begun)


def test_p16_device_and_broker_lost_together(own_fleet: LiveFleet, tmp_path: Path) -> None:
    """The journal as it is on disk at that moment, and a broker that knows nothing."""
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    with serving(own_fleet, paced_engine()):
        with device(own_fleet, first) as agent:
            events = agent.chat(OPTIONS).send("hold on")
            begun = list(islice(events, 3))
            own_fleet.broker.kill()
            shutil.copytree(first / "journal", second / "journal")
        own_fleet.broker.restart(keep_persistence=False)
        with device(own_fleet, second) as agent:
            chat = agent.chat(resume=True)
            stats = last(chat.continue_answer())
            chat.close()
    shown = tuple(token for event in begun if isinstance(event, TextDelta) for token in event.tokens)
    assert stats.token_ids[: len(shown)] == shown
    assert list(stats.token_ids) == alone(stats, ANSWER)


# ---- verifiers


def test_a_verifiers_host_lost_half_open_is_left_for_another(emulated: EmulatedFleet, tmp_path: Path) -> None:
    """No will, no reset: only its silence. The other one goes on well before the keepalive would tell."""
    with (
        serving(emulated, paced_engine(), "v1"),
        serving(emulated, paced_engine(), "v2"),
        device(emulated, tmp_path / "home", verifier="v1") as agent,
    ):
        wait_for(lambda: agent.call(lambda: agent._adverts.alive) == {"v1", "v2"})
        with agent.chat(OPTIONS) as chat:
            assert chat.verifier == "v1"
            events = chat.send("hold on")
            begun = list(islice(events, 3))
            emulated.links["verifier.v1"].black_hole(60.0)
            finish(events, begun)
            assert chat.verifier == "v2"


@pytest.mark.slow
def test_p3_a_verifier_that_is_back_after_40_s_harms_nothing(emulated: EmulatedFleet, tmp_path: Path) -> None:
    with (
        serving(emulated, paced_engine(), "v1"),
        serving(emulated, paced_engine(), "v2"),
        device(emulated, tmp_path / "home", verifier="v1") as agent,
    ):
        wait_for(lambda: agent.call(lambda: agent._adverts.alive) == {"v1", "v2"})
        with agent.chat(OPTIONS) as chat:
            events = chat.send("hold on")
            begun = list(islice(events, 3))
            back_s = time.monotonic() + 40.0
            emulated.links["verifier.v1"].stall(40.0)  # what was under way comes back late, too
            finish(events, begun)
            while time.monotonic() < back_s + 5.0:
                stats = last(chat.send("go on"))
                assert list(stats.token_ids) == alone(stats, ANSWER)
                if len(chat.tokens) > 300:
                    chat.reset()


def test_a_verifier_is_back_soon_after_its_broker(own_fleet: LiveFleet) -> None:
    """Devices spread their return over up to half a minute; what they all wait for does not."""
    with serving(own_fleet, table_engine()) as service:
        own_fleet.broker.kill()
        wait_for(lambda: not service._link.is_connected)
        threading.Event().wait(4.0)
        own_fleet.broker.restart()
        started_s = time.monotonic()
        wait_for(lambda: service._link.is_connected)
        assert time.monotonic() - started_s < 5.0


# ---- links


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_a_short_black_hole_is_waited_out(emulated: EmulatedFleet, tmp_path: Path, direction: Any) -> None:
    """The connection is dead for good; the device finds out by itself and goes on over a new one."""
    with serving(emulated, paced_engine(), "v1"), device(emulated, tmp_path / "home") as agent:
        agent._link._client._client._keepalive = 1
        with agent.chat(OPTIONS) as chat:
            events = chat.send("hold on")
            begun = list(islice(events, 3))
            emulated.links["dev-a"].black_hole(1.0, direction)
            finish(events, begun)


@pytest.mark.slow
def test_p7_a_black_hole_of_30_s_is_waited_out_and_ends_in_no_burst(
    emulated: EmulatedFleet, tmp_path: Path
) -> None:
    with (
        serving(emulated, paced_engine(), "v1"),
        device(emulated, tmp_path / "home") as agent,
        agent.chat(OPTIONS) as chat,
    ):
        events = chat.send("hold on")
        begun = list(islice(events, 3))
        before = agent.traffic.n_sent
        emulated.links["dev-a"].black_hole(30.0)
        hole_s = time.monotonic()
        while time.monotonic() < hole_s + 25.0:
            begun.append(next(events))
        assert agent.traffic.n_sent - before < 20
        finish(events, begun)


def test_2000_queued_messages_on_reconnect_do_not_hide_the_answer(
    emulated: EmulatedFleet, tmp_path: Path
) -> None:
    """Stale verdicts that the broker kept for the device while it was away."""
    topic = VERDICT.topic("f", v="v2", d="dev-a", n=0)
    with serving(emulated, paced_engine(), "v1"), device(emulated, tmp_path / "home") as agent:
        with agent.chat(OPTIONS) as chat, emulated.link("verifier.v2", Recorder(), max_queue=5000) as other:
            events = chat.send("hold on")
            begun = list(islice(events, 3))
            stale = Verdict(
                uid=chat._live.machine.uid, generation=1, round=0, start=0, tokens=(9,) * 8, n_accepted=0
            )
            emulated.links["dev-a"].cut(2.0)
            for number in range(2000):
                other.publish(topic, encode(stale.model_copy(update={"round": number})))
            finish(events, begun)
        assert agent.traffic.n_received > 2000


# ---- clocks


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0, -1.7e9])
def test_a_clock_that_jumps_on_either_side_changes_nothing(
    live_fleet: LiveFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    """By a day either way in the middle of an answer, and back to 1970, for device and verifier alike."""
    right_time = time.time
    with (
        serving(live_fleet, paced_engine()),
        device(live_fleet, tmp_path) as agent,
        agent.chat(OPTIONS) as chat,
    ):
        events = chat.send("hold on")
        begun = list(islice(events, 3))
        monkeypatch.setattr(time, "time", lambda: right_time() + jump_s)
        finish(events, begun)


MORNING_OF_1970_S = 2 * 86_400 + 3600


def test_p18_a_board_whose_clock_says_1970_gets_through_the_broker_s_handshake(
    live_fleet: LiveFleet,
) -> None:
    """OpenSSL verifies the broker as a board does whose clock stands at the third day of 1970."""
    endpoint = live_fleet.endpoint("dev-a")
    tls = endpoint.tls
    assert tls is not None
    handshake = [
        "openssl",
        "s_client",
        "-connect",
        f"{endpoint.host}:{endpoint.port}",
        "-verify_return_error",
    ]
    files = ["-CAfile", str(tls.ca_file), "-cert", str(tls.cert_file), "-key", str(tls.key_file)]
    clock = ["-attime", str(MORNING_OF_1970_S), "-verify_hostname", "localhost"]
    done = subprocess.run(
        [*handshake, *files, *clock],
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=WAIT_S,
    )
    assert b"Verify return code: 0 (ok)" in done.stdout, done.stderr.decode()


def test_p18_a_certificate_of_its_own_is_valid_for_a_board_whose_clock_says_1970(
    live_fleet: LiveFleet,
) -> None:
    own = x509.load_pem_x509_certificate(live_fleet.tls("dev-a").cert_file.read_bytes())
    morning = dt.datetime.fromtimestamp(MORNING_OF_1970_S, dt.UTC)
    assert own.not_valid_before_utc < morning < own.not_valid_after_utc


# ---- verifiers that leave for good


def test_p23_what_a_retired_verifier_retained_stays(own_fleet: LiveFleet) -> None:
    """Its identity leaves the access list; the checkpoints that it wrote are still there to be resumed."""
    topic = STATE.topic("f", v="v2", d="dev-a", n=0)
    with own_fleet.link("verifier.v2", writer := Recorder()) as link:
        link.publish(topic, b"a conversation", is_retained=True)
        writer.next(Published)
    files = own_fleet.directory.broker_files()
    rest = tuple(name for name in files.backend_identities if name != "verifier.v2")
    own_fleet.broker.reload(dataclasses.replace(files, backend_identities=rest))
    own_fleet.broker.stop()
    own_fleet.broker.restart()
    with own_fleet.link("dev-a", reader := Recorder()) as link:
        link.subscribe([Subscription(STATE.filter("f", d="dev-a"))])
        assert reader.next(Received).payload == b"a conversation"
