"""Pulling over a network that loses, repeats, reorders and spoils: each chunk once and right, or an error."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.delivery.assembly import MAX_WRONG, Assembly, Store
from device_agent.delivery.pace import YIELDING_BYTES_PER_S, Pace
from device_agent.delivery.pull import (
    FIRST_TIMEOUT_S,
    LEAST_INTERVAL_S,
    LONGEST_TIMEOUT_S,
    SILENT_TIMES,
    WINDOW_BLOCKS,
    Ask,
    Pull,
    PullAction,
)
from protocol.errors import ModelError
from protocol.model_block import BLOCK_BYTES
from tests.unit.device_agent.delivered_file import block_of, content_of, manifest_of

CONTENT = content_of(21 * BLOCK_BYTES + 77)
MANIFEST = manifest_of(CONTENT)


class Network:
    """A device that pulls, its disk, and blocks on their way to it; time passes only when told."""

    def __init__(self, present: Sequence[int] = ()) -> None:
        self.assembly = Assembly(MANIFEST, present)
        self.pull = Pull(self.assembly)
        self.disk = {chunk: self.right(chunk) for chunk in present}
        self.on_the_way: list[int] = []
        self.asked_s: list[float] = []
        self.now_s = 0.0
        self.n_sent = 0

    def right(self, chunk: int) -> bytes:
        start = chunk * MANIFEST.chunk_bytes
        return CONTENT[start : start + MANIFEST.chunk_size(chunk)]

    def perform(self, actions: Sequence[PullAction]) -> None:
        for action in actions:
            if isinstance(action, Store):
                assert action.chunk not in self.disk, "a chunk was counted twice"
                assert action.data == self.right(action.chunk)
                self.disk[action.chunk] = action.data
            else:
                assert isinstance(action, Ask)
                asked = [first + step for first, count in action.blocks for step in range(count)]
                self.asked_s.append(self.now_s)
                self.n_sent += len(asked)
                self.on_the_way += asked
        assert len(self.pull._under_way) <= WINDOW_BLOCKS
        assert self.assembly.n_done == sum(map(len, self.disk.values()))

    def connect(self, *, is_up: bool = True) -> None:
        if not is_up:
            self.on_the_way.clear()
        self.perform(self.pull.link_changed(self.now_s, is_up=is_up))

    def deliver(self, place: int, spoil: bytes | None = None) -> None:
        block = self.on_the_way.pop(place)
        self.perform(self.pull.block(block, block_of(CONTENT, block) if spoil is None else spoil, self.now_s))

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.perform(self.pull.tick(self.now_s))

    def disturb(self, kind: str, value: float) -> None:
        """One thing that a network, or the device's user, does."""
        if kind in ("deliver", "repeat", "lose", "spoil"):
            if self.on_the_way:
                self._disturb_one(kind, int(value) % len(self.on_the_way))
        elif kind == "wait":
            self.wait(value)
        elif kind in ("cut", "connect"):
            self.connect(is_up=kind == "connect")
        elif kind == "stray":
            self.perform(self.pull.block(int(value), b"x" * BLOCK_BYTES, self.now_s))
        elif kind == "refuse":
            self.perform(self.pull.refused(self.now_s))
        else:
            self.perform(self.pull.set_pace(Pace(is_yielding=bool(value)), self.now_s))

    def _disturb_one(self, kind: str, place: int) -> None:
        if kind == "repeat":
            self.on_the_way.append(self.on_the_way[place])
        elif kind == "lose":
            self.on_the_way.pop(place)
        else:
            size = MANIFEST.block_size(self.on_the_way[place])
            self.deliver(place, bytes(size) if kind == "spoil" else None)

    def finish(self) -> None:
        """From now on everything arrives."""
        for _ in range(1000):
            if self.assembly.is_whole:
                break
            if self.on_the_way:
                self.now_s += 0.001
                self.deliver(0)
            else:
                wake_s = self.pull.wake_s
                assert wake_s is not None
                self.wait(max(0.0, wake_s - self.now_s))
        assert b"".join(self.disk[chunk] for chunk in range(MANIFEST.n_chunks)) == CONTENT
        assert self.assembly.n_done == len(CONTENT)
        assert self.pull.wake_s is None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), st.integers(0, 99)),
        st.tuples(st.just("repeat"), st.integers(0, 99)),
        st.tuples(st.just("lose"), st.integers(0, 99)),
        st.tuples(st.just("spoil"), st.integers(0, 99)),
        st.tuples(st.just("wait"), st.floats(0.0, 40.0)),
        st.tuples(st.just("cut"), st.just(0)),
        st.tuples(st.just("connect"), st.just(0)),
        st.tuples(st.just("stray"), st.integers(0, 50)),
        st.tuples(st.just("refuse"), st.just(0)),
        st.tuples(st.just("yield"), st.booleans()),
    ),
    max_size=80,
)


@given(steps=STEPS, present=st.sets(st.integers(0, MANIFEST.n_chunks - 1)))
def test_whatever_the_network_does_the_file_is_intact(
    steps: list[tuple[str, int | float]], present: set[int]
) -> None:
    network = Network(sorted(present))
    network.connect()
    try:
        for kind, value in steps:
            network.disturb(kind, value)
    except ModelError as error:
        assert f"wrong bytes {MAX_WRONG} times" in str(error)  # noqa: PT017 - either this or an intact file
        return
    network.perform(network.pull.set_pace(Pace(), network.now_s))
    network.connect()
    network.finish()


def test_an_undisturbed_file_is_sent_once_in_order() -> None:
    network = Network()
    network.connect()
    network.finish()
    assert network.n_sent == MANIFEST.n_blocks
    assert network.assembly.n_again_bytes == 0
    pauses = [later - earlier for earlier, later in zip(network.asked_s, network.asked_s[1:], strict=False)]
    assert min(pauses) >= LEAST_INTERVAL_S * 0.999


def test_a_cut_costs_at_most_the_window() -> None:
    network = Network()
    network.connect()
    for n_cuts in range(1, 6):
        for _ in range(3):
            network.now_s += 0.02
            network.deliver(0)
        network.connect(is_up=False)
        network.now_s += 1.0
        network.connect()
        assert network.n_sent <= MANIFEST.n_blocks + n_cuts * WINDOW_BLOCKS
    network.finish()
    assert network.n_sent <= MANIFEST.n_blocks + 5 * WINDOW_BLOCKS


def test_what_is_there_already_is_not_asked_for() -> None:
    network = Network(present=range(MANIFEST.n_chunks - 1))
    network.connect()
    network.finish()
    assert network.n_sent == len(MANIFEST.blocks_of(MANIFEST.n_chunks - 1))


def test_silence_is_answered_by_ever_fewer_requests_and_a_word() -> None:
    network = Network()
    network.connect()
    for _ in range(12):
        network.on_the_way.clear()
        assert network.pull.wake_s is not None
        network.wait(network.pull.wake_s - network.now_s)
    pauses = [later - earlier for earlier, later in zip(network.asked_s, network.asked_s[1:], strict=False)]
    assert pauses[0] == pytest.approx(FIRST_TIMEOUT_S)
    assert pauses[-1] == pytest.approx(LONGEST_TIMEOUT_S)
    assert len(pauses) >= SILENT_TIMES
    assert "is sled fleet serve running?" in network.pull.problem
    network.finish()
    assert network.pull.problem == ""


def test_a_refusal_is_said_and_asked_again_later() -> None:
    network = Network()
    network.connect()
    network.on_the_way.clear()
    network.perform(network.pull.refused(network.now_s))
    assert "push it again" in network.pull.problem
    assert network.pull.wake_s == pytest.approx(LONGEST_TIMEOUT_S)
    network.finish()


def test_a_source_with_another_file_is_given_up() -> None:
    network = Network()
    network.connect()

    def feed() -> None:
        for _ in range(1000):
            network.wait(0.02)
            network.deliver(0, bytes(BLOCK_BYTES))

    with pytest.raises(ModelError, match="chunk 0 of tiny came with wrong bytes"):
        feed()


@pytest.mark.parametrize(
    ("pace", "bytes_per_s"),
    [
        (Pace(limit_bytes_per_s=64 * 1024), 64 * 1024),
        (Pace(is_yielding=True), YIELDING_BYTES_PER_S),
        (Pace(limit_bytes_per_s=64 * 1024, is_yielding=True), YIELDING_BYTES_PER_S),
    ],
)
def test_the_stated_rate_is_kept(pace: Pace, bytes_per_s: int) -> None:
    network = Network()
    network.perform(network.pull.set_pace(pace, 0.0))
    network.connect()
    network.finish()
    least_s = (len(CONTENT) - 2 * BLOCK_BYTES) / bytes_per_s - 0.25
    assert network.now_s >= least_s
    assert network.now_s <= 1.3 * len(CONTENT) / bytes_per_s + 1


def test_somebody_who_waits_for_an_answer_shares_the_link_with_one_block() -> None:
    network = Network()
    network.connect()
    for _ in range(5):
        network.now_s += 0.02
        network.deliver(0)
    network.perform(network.pull.set_pace(Pace(is_yielding=True), network.now_s))
    while network.on_the_way:
        network.deliver(0)
    network.wait(5.0)
    assert len(network.on_the_way) == 1


@pytest.mark.parametrize("n_left", [1, 2, 5])
def test_with_the_last_blocks_under_way_there_is_nothing_to_do_but_wait(n_left: int) -> None:
    network = Network()
    network.connect()
    while len(network.pull._under_way) != n_left or next(network.pull._waiting(), None) is not None:
        if network.on_the_way:
            network.deliver(0)
        else:
            network.wait(LEAST_INTERVAL_S)
    wake_s = network.pull.wake_s
    assert wake_s is not None
    assert wake_s >= network.now_s + FIRST_TIMEOUT_S / 2
    network.now_s += LEAST_INTERVAL_S
    assert network.pull.wake_s == wake_s
