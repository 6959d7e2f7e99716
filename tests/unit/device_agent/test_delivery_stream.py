"""Reading a file from a web server that cuts, repeats itself, sends wrong bytes or does not answer."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.delivery.assembly import MAX_WRONG, Assembly, Store
from device_agent.delivery.stream import LONGEST_DELAY_S, PATIENCE, Fetch, Stream, StreamAction
from protocol.backoff import Backoff
from protocol.errors import ModelError
from protocol.model_block import BLOCK_BYTES
from tests.unit.device_agent.delivered_file import block_of, content_of, manifest_of

CONTENT = content_of(17 * BLOCK_BYTES + 5)
MANIFEST = manifest_of(CONTENT)


class Download:
    """A device that reads, and its disk; the server sends as many blocks of a fetch as it is told to."""

    def __init__(self, present: set[int]) -> None:
        self.assembly = Assembly(MANIFEST, present)
        self.stream = Stream(self.assembly, Backoff(0.5, LONGEST_DELAY_S, random.Random(1)))
        self.disk = {chunk: self.right(chunk) for chunk in present}
        self.fetches: list[Fetch] = []
        self.now_s = 0.0

    def right(self, chunk: int) -> bytes:
        start = chunk * MANIFEST.chunk_bytes
        return CONTENT[start : start + MANIFEST.chunk_size(chunk)]

    def perform(self, actions: list[StreamAction]) -> None:
        for action in actions:
            if isinstance(action, Store):
                assert action.chunk not in self.disk, "a chunk was counted twice"
                assert action.data == self.right(action.chunk)
                self.disk[action.chunk] = action.data
            else:
                self.fetches.append(action)

    def serve(self, n_blocks: int, *, wrong: int = -1, problem: str = "cut") -> None:
        """Answer the fetch under way with its first blocks; the `wrong`-th of them is spoilt."""
        fetch = self.fetches.pop()
        assert not self.fetches, "two fetches at once"
        for step in range(min(n_blocks, fetch.n_blocks)):
            index = fetch.first + step
            assert self.assembly.is_missing(index), "a block that is here was fetched again"
            data = block_of(CONTENT, index)
            self.perform(self.stream.block(index, bytes(len(data)) if step == wrong else data))
        self.now_s += 0.01
        is_whole = n_blocks >= fetch.n_blocks
        self.perform(self.stream.ended("" if is_whole else problem, self.now_s))

    def wake(self) -> None:
        wake_s = self.stream.wake_s
        if wake_s is not None:
            self.now_s = max(self.now_s, wake_s)
            self.perform(self.stream.tick(self.now_s))


@given(
    present=st.sets(st.integers(0, MANIFEST.n_chunks - 1), max_size=MANIFEST.n_chunks - 1),
    answers=st.lists(st.tuples(st.integers(0, 12), st.integers(-1, 6)), max_size=40),
)
def test_however_often_it_is_cut_the_file_is_intact(
    present: set[int], answers: list[tuple[int, int]]
) -> None:
    download = Download(present)
    try:
        for n_blocks, wrong in answers:
            download.wake()
            if download.assembly.is_whole:
                break
            download.serve(n_blocks, wrong=wrong)
    except ModelError as error:
        assert f"wrong bytes {MAX_WRONG} times" in str(error)  # noqa: PT017 - either this or an intact file
        return
    while not download.assembly.is_whole:
        download.wake()
        download.serve(99)
    assert b"".join(download.disk[chunk] for chunk in range(MANIFEST.n_chunks)) == CONTENT
    assert download.assembly.n_done == len(CONTENT)
    assert download.stream.wake_s is None


def test_only_the_holes_are_fetched() -> None:
    download = Download({0, 3, 4})
    download.wake()
    assert download.fetches == [Fetch(2, 4)]
    download.serve(99)
    assert download.fetches == [Fetch(10, 8)]


def test_a_server_that_brings_nothing_is_given_up_after_a_while() -> None:
    download = Download(set())
    for _ in range(PATIENCE):
        assert not download.stream.is_hopeless
        download.wake()
        download.serve(0, problem="refused")
    assert download.stream.is_hopeless
    assert download.stream.problem == "refused"
    download.wake()
    download.serve(3)
    assert not download.stream.is_hopeless


def test_a_final_refusal_is_hopeless_at_once() -> None:
    download = Download(set())
    download.wake()
    download.perform(download.stream.ended("its server answers 404", 1.0, is_final=True))
    assert download.stream.is_hopeless
    assert download.stream.wake_s is not None
    assert download.stream.wake_s >= 1.0 + LONGEST_DELAY_S / 2


def test_a_server_with_another_file_is_given_up() -> None:
    download = Download(set())

    def read() -> None:
        for _ in range(10):
            download.wake()
            download.serve(2, wrong=0)

    with pytest.raises(ModelError, match="chunk 0 of tiny"):
        read()
