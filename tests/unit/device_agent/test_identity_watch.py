"""Boards with one identity: whatever the order of what they say, exactly one of them goes on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.device_facts import DeviceFacts
from device_agent.duties import FleetDuties
from device_agent.duties_memory import DutiesMemory
from device_agent.fleet_actions import Action, Halt, Retain, Subscribe, Unsubscribe
from device_agent.identity_watch import Finding, IdentityWatch
from device_agent.settings import Settings
from protocol.codec import decode, encode
from protocol.fleet_messages import MAX_OTHER_LIVES, DeviceStatus

TOPIC = "sled/1/home/device/pi-1/status"


def status(
    life: str, *others: str, is_online: bool = False, is_lost: bool = False, yields_to: str = ""
) -> DeviceStatus:
    return DeviceStatus(
        is_online=is_online, is_lost=is_lost, incarnation=life, others=others, yields_to=yields_to
    )


@pytest.mark.parametrize(
    ("other", "finding"),
    [
        (status("a", "m", is_online=True), "leave"),
        (status("a", "b", "m", is_online=True), "leave"),
        (status("a", "m"), "stay"),
        (status("a", "m", yields_to="b"), "stay"),
        (status("z", "m", is_online=True), "stay"),
        (status("z", yields_to="m"), "stay"),
        (status("m", is_online=True), "own_birth"),
        (status("m", is_lost=True), "nothing"),
        (status("earlier", is_online=True), "nothing"),
    ],
)
def test_only_a_life_before_the_own_that_names_the_own_is_left_to(
    other: DeviceStatus, finding: Finding
) -> None:
    assert IdentityWatch("m").look(other, {"earlier"}) == finding


@pytest.mark.parametrize(
    "leftover",
    [
        status("a", is_online=True),
        status("a", is_lost=True),
        status("a", "b", yields_to="b"),
        status("z", "a", is_online=True),
    ],
)
def test_p15_what_does_not_name_the_own_life_may_be_old_however_often_it_comes(
    leftover: DeviceStatus,
) -> None:
    """A broker that comes back with the same old memory again and again brings it each time."""
    watch = IdentityWatch("m")
    for _ in range(3):
        assert watch.look(status("m", is_online=True), ()) == "own_birth"
        assert watch.look(leftover, ()) == "heard"
    assert watch.others == (leftover.incarnation, *leftover.others)


def test_the_lives_heard_of_are_bounded_and_the_oldest_are_forgotten() -> None:
    watch = IdentityWatch("m")
    for number in range(MAX_OTHER_LIVES + 5):
        watch.look(status(f"a{number}", "m", f"a{number - 1}"), ())
    assert len(watch.others) == MAX_OTHER_LIVES
    assert watch.others[0] == f"a{MAX_OTHER_LIVES + 4}"
    assert "m" not in watch.others
    assert status("m", *watch.others).others == watch.others


class Board:
    """A device's duties and its link: what it hears and retains, and whether it is subscribed."""

    def __init__(self, life: str) -> None:
        self.life = life
        self.duties = FleetDuties(DeviceFacts("home", "pi-1", life, serial=life), Settings(), DutiesMemory())
        self.is_listening = True
        self.has_left = False
        self.birth = b""
        self.is_due = False
        self.perform(self.duties.start(0.0))

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Retain(topic, payload) if topic == TOPIC:
                    self.birth, self.is_due = payload, True
                case Subscribe():
                    self.is_listening = True
                case Unsubscribe():
                    self.is_listening = False
                case Halt():
                    self.has_left = True
                case _:
                    pass


class Site:
    """A broker with one retained status, which lets one board in at a time.

    Args:
        memory: the retained status in its persistence file, of a board that is no more.
    """

    def __init__(self, lives: list[str], memory: bytes = b"") -> None:
        self.boards = [Board(life) for life in lives]
        self.inside: Board | None = None
        self.memory = self.retained = memory
        self.echoes: list[bytes] = []

    def act(self, number: int, step: str) -> None:
        board = self.boards[number % len(self.boards)]
        if step == "restart":
            self.leave(is_will_sent=False)
            self.retained = self.memory
        elif step == "connect" and board is not self.inside and not board.has_left:
            self.leave(is_will_sent=False)
            self.inside, board.is_due = board, True
            if board.is_listening and self.retained:
                self.echoes.append(self.retained)
        elif board is not self.inside:
            return
        elif step == "publish" and board.is_due:
            board.is_due = False
            self.say(board.birth)
        elif step == "hear" and self.echoes:
            self.hear(board, self.echoes.pop(0))
        elif step == "break":
            self.leave(is_will_sent=True)

    def leave(self, *, is_will_sent: bool) -> None:
        """The board inside is thrown out, which sends no will, or its connection breaks, which does."""
        board, self.inside = self.inside, None
        self.echoes.clear()
        if board is None:
            return
        if is_will_sent:
            self.retained = board.duties.will().payload
        if not board.has_left:
            board.perform(board.duties.on_disconnected())

    def say(self, payload: bytes) -> None:
        self.retained = payload
        if self.inside is not None and self.inside.is_listening:
            self.echoes.append(payload)

    def hear(self, board: Board, payload: bytes) -> None:
        board.perform(board.duties.on_message(TOPIC, payload, 0.0))
        if board.has_left:
            self.retained = board.duties.farewell()[1]
            self.leave(is_will_sent=False)

    def let_everyone_speak(self) -> None:
        """Each comes in, hears all there is, says its birth, and hears that, in turn.

        At worst one board leaves in each round, after the two in which all hear of the others.
        """
        for _ in range(len(self.boards) + 2):
            for number, board in enumerate(self.boards):
                self.act(number, "connect")
                while board is self.inside and (self.echoes or board.is_due):
                    self.act(number, "hear" if self.echoes else "publish")


KINDS = ["connect", "publish", "hear", "break", "restart"]
STEPS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(KINDS)), max_size=60)


@settings(max_examples=400)
@given(
    st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=4, unique=True),
    st.sampled_from([b"", encode(status("A", "B", is_online=True)), encode(status("z", is_lost=True))]),
    STEPS,
)
def test_p17_of_boards_with_one_identity_exactly_one_goes_on_in_any_order(
    lives: list[str], memory: bytes, steps: list[tuple[int, str]]
) -> None:
    """Also where the broker comes back with the status of a board that is no more, which would go first."""
    site = Site(lives, memory)
    for number, step in steps:
        site.act(number, step)
        assert not next(board for board in site.boards if board.life == min(lives)).has_left
    site.let_everyone_speak()
    assert [board.life for board in site.boards if not board.has_left] == [min(lives)]
    last = decode(DeviceStatus, site.retained)
    assert (last.incarnation, last.is_online) == (min(lives), True)
    assert bool(last.problem) == (len(lives) > 1), "the operator reads that there was another"
