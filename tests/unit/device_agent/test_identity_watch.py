"""Boards with one identity: whatever the order of what they say, exactly one of them goes on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.duties import Action, DeviceFacts, FleetDuties, Halt, Retain, Subscribe, Unsubscribe
from device_agent.duties_memory import DutiesMemory
from device_agent.identity_watch import Finding, IdentityWatch
from device_agent.settings import Settings
from protocol.codec import decode
from protocol.messages import DeviceStatus

TOPIC = "sled/1/home/device/pi-1/status"


def status(life: str, *, is_online: bool = False, is_lost: bool = False, yields_to: str = "") -> DeviceStatus:
    return DeviceStatus(is_online=is_online, is_lost=is_lost, incarnation=life, yields_to=yields_to)


def heard() -> IdentityWatch:
    watch = IdentityWatch("m")
    assert watch.look(status("m", is_online=True), ()) == "own_birth"
    return watch


@pytest.mark.parametrize(
    ("other", "finding"),
    [
        (status("a", is_online=True), "leave"),
        (status("a", is_lost=True), "leave"),
        (status("a"), "stay"),
        (status("a", yields_to="b"), "stay"),
        (status("z", is_online=True), "stay"),
        (status("z", is_lost=True), "stay"),
        (status("z", yields_to="m"), "stay"),
        (status("m", is_lost=True), "nothing"),
        (status("earlier", is_online=True), "nothing"),
    ],
)
def test_only_a_life_before_the_own_that_was_alive_is_left_to(other: DeviceStatus, finding: Finding) -> None:
    assert heard().look(other, {"earlier"}) == finding


def test_before_the_own_birth_only_who_left_for_this_very_life_is_known_to_be_another() -> None:
    watch = IdentityWatch("m")
    assert watch.look(status("a", is_online=True), ()) == "nothing", "this board, before it lost its memory"
    assert watch.look(status("z", yields_to="other"), ()) == "nothing"
    assert watch.look(status("z", yields_to="m"), ()) == "stay"


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
    """A broker with one retained status, which lets one board in at a time."""

    def __init__(self, lives: list[str]) -> None:
        self.boards = [Board(life) for life in lives]
        self.inside: Board | None = None
        self.retained = b""
        self.echoes: list[bytes] = []

    def act(self, number: int, step: str) -> None:
        board = self.boards[number % len(self.boards)]
        if step == "connect" and board is not self.inside and not board.has_left:
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

        At worst one board leaves in each round, after the one in which all hear their births.
        """
        for _ in range(len(self.boards) + 2):
            for number, board in enumerate(self.boards):
                self.act(number, "connect")
                while board is self.inside and (self.echoes or board.is_due):
                    self.act(number, "hear" if self.echoes else "publish")


STEPS = st.tuples(st.integers(0, 3), st.sampled_from(["connect", "publish", "hear", "break"]))


@settings(max_examples=400)
@given(
    st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=4, unique=True),
    st.lists(STEPS, max_size=60),
)
def test_p17_of_boards_with_one_identity_exactly_one_goes_on_in_any_order(
    lives: list[str], steps: list[tuple[int, str]]
) -> None:
    site = Site(lives)
    for number, step in steps:
        site.act(number, step)
        assert not next(board for board in site.boards if board.life == min(lives)).has_left
    site.let_everyone_speak()
    assert [board.life for board in site.boards if not board.has_left] == [min(lives)]
    last = decode(DeviceStatus, site.retained)
    assert (last.incarnation, last.is_online) == (min(lives), True)
    assert bool(last.problem) == (len(lives) > 1), "the operator reads that there was another"
