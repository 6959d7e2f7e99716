"""The journal: whatever byte the power went at, what is read is a state that the session was in."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent import journal as journal_module
from device_agent.journal import RESERVED_GENERATIONS, JournalDirectory, parse
from device_agent.saved import Entry, Saved
from protocol.errors import ConfigError
from protocol.messages import SamplerSettings

FRESH = Saved(
    "00000000000000cc", 3, "v1", "00000000000000aa", SamplerSettings(seed=(1 << 64) - 1), 0, (), 0, 0, None
)
STEPS = (
    (Entry(1, 0, (1, 2, 3), verifier="v1", settings=FRESH.settings, answer_start=3, limit=50), True),
    (Entry(1, 3, (7, 8)), False),
    (Entry(2, 5), True),
    (Entry(2, 5, (9,)), False),
    (Entry(2, 6, (70_000, 0), finished="stop"), True),
    (Entry(3, 8, (4,), settings=SamplerSettings(attempt=1), answer_start=9, limit=60), True),
    (Entry(3, 9, (5, 5, 5)), False),
    (Entry(4, 10, finished="stopped"), True),
)


def states() -> list[Saved]:
    """The session after each step."""
    result = [FRESH]
    for entry, _ in STEPS:
        result.append(result[-1].after(entry))
    return result


def written(directory: Path) -> Path:
    """A journal file with all steps."""
    journal = JournalDirectory(directory).create(FRESH)
    for entry, is_durable in STEPS:
        journal.append(entry, is_durable=is_durable)
    journal.close()
    return directory / f"{FRESH.uid}.journal"


def without_generation(saved: Saved) -> Saved:
    """Generations are reserved ahead, so a journal may give a higher one."""
    return Saved(**{**{name: getattr(saved, name) for name in Saved.__slots__}, "generation": 0})


def test_what_was_appended_is_loaded(tmp_path: Path) -> None:
    written(tmp_path)
    (loaded,) = JournalDirectory(tmp_path).load()
    assert without_generation(loaded) == without_generation(states()[-1])
    assert loaded.generation >= states()[-1].generation


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("journal")).read_bytes()


@given(data=st.data())
def test_cut_at_any_byte_it_gives_an_earlier_state(content: bytes, data: st.DataObject) -> None:
    loaded = parse(content[: data.draw(st.integers(0, len(content)))])
    if loaded is not None:
        assert without_generation(loaded) in [without_generation(state) for state in states()]


@given(data=st.data())
def test_a_flipped_byte_gives_an_earlier_state(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(content)
    damaged[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    loaded = parse(bytes(damaged))
    if loaded is not None:
        assert without_generation(loaded) in [without_generation(state) for state in states()]


def test_the_generation_read_is_never_below_one_in_use_when_the_power_went(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was synced survives: still no generation in use is forgotten."""
    synced = [0]
    path = tmp_path / f"{FRESH.uid}.journal"
    monkeypatch.setattr(
        journal_module.os, "fsync", lambda _: synced.append(path.stat().st_size if path.exists() else 0)
    )
    journal = JournalDirectory(tmp_path).create(FRESH)
    synced.append(path.stat().st_size)
    for generation in range(1, 3 * RESERVED_GENERATIONS):
        journal.append(Entry(generation, 0), is_durable=True)
        survivor = parse(path.read_bytes()[: synced[-1]])
        assert survivor is not None
        assert survivor.generation >= generation
    journal.close()
    assert 2 <= len(synced) <= 8, "raising the generation within a turn seldom costs a sync"
    assert content


def full(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_generations_are_not_taken_for_reserved_that_never_reached_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full; without that a power cut would have a generation used twice."""
    synced: list[int] = []
    journal = JournalDirectory(tmp_path).create(FRESH)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        journal.append(Entry(RESERVED_GENERATIONS + 5, 0, (1,), verifier="v2"), is_durable=True)
    monkeypatch.setattr(os, "fsync", synced.append)
    journal.append(Entry(RESERVED_GENERATIONS + 6, 1), is_durable=True)
    assert len(synced) == 1
    journal.append(Entry(RESERVED_GENERATIONS + 7, 1), is_durable=True)
    assert len(synced) == 1, "now it is reserved"
    journal.close()


def test_a_journal_that_a_full_disk_keeps_from_closing_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = JournalDirectory(tmp_path).create(FRESH)
    file = journal._file

    class FullFile(FileIO):
        def close(self) -> None:
            super().close()
            full(0)

    file.close()
    monkeypatch.setattr(journal, "_file", FullFile(tmp_path / "full", "w"))
    journal.close()
    assert "No space left" in caplog.text


class NarrowFile(FileIO):
    """A file on a disk that has room for so many more bytes."""

    room = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if not self.room:
            full(0)
        n_bytes = super().write(data[: self.room])
        self.room -= n_bytes
        return n_bytes


@pytest.mark.parametrize("n_tokens", [3, 5_000])
@pytest.mark.parametrize("room", [0, 1, 100, 10_000])
def test_nothing_is_lost_behind_a_line_that_a_full_disk_tore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, n_tokens: int
) -> None:
    journal = JournalDirectory(tmp_path).create(FRESH)
    journal._file.close()
    file = NarrowFile(tmp_path / f"{FRESH.uid}.journal", "ab")
    monkeypatch.setattr(journal, "_file", file)
    file.room = room
    context = tuple(range(n_tokens))
    with contextlib.suppress(ConfigError):
        journal.append(Entry(1, 0, context, answer_start=n_tokens, limit=9_000), is_durable=True)
    file.room = 1 << 20
    journal.append(Entry(40, n_tokens, (7, 8), finished="stop"), is_durable=True)
    journal.close()
    (saved,) = JournalDirectory(tmp_path).load()
    assert saved.tokens == (*context, 7, 8)
    assert saved.generation >= 40


def test_what_a_full_disk_kept_out_is_written_at_the_end_if_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = JournalDirectory(tmp_path).create(FRESH)
    journal._file.close()
    file = NarrowFile(tmp_path / f"{FRESH.uid}.journal", "ab")
    monkeypatch.setattr(journal, "_file", file)
    with pytest.raises(ConfigError, match="No space left"):
        journal.append(STEPS[0][0], is_durable=True)
    file.room = 1 << 20
    journal.close()
    (saved,) = JournalDirectory(tmp_path).load()
    assert saved.tokens == (1, 2, 3)


def test_lines_that_are_no_step_end_the_journal(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"00000000\n00000000 \n")
    assert parse(path.read_bytes()) == parse(whole)


def test_a_long_journal_that_another_process_has_open_is_not_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    directory = JournalDirectory(tmp_path)
    (saved,) = directory.load()
    monkeypatch.setattr(journal_module, "COMPACT_BYTES", 100)
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        before = path.read_bytes()
        with pytest.raises(ConfigError, match="open in another process"):
            directory.open(saved)
    assert path.read_bytes() == before
    directory.open(saved).close()
    assert path.read_bytes() != before


def test_a_text_with_a_hole_ends_before_it(tmp_path: Path) -> None:
    """No fault of the disk may make a text of two ends that do not meet."""
    journal = JournalDirectory(tmp_path).create(FRESH)
    for entry in (STEPS[0][0], Entry(2, 40, (7, 8)), Entry(3, 42, (9,))):
        journal.append(entry, is_durable=True)
    journal.close()
    directory = JournalDirectory(tmp_path)
    (saved,) = directory.load()
    assert saved.tokens == (1, 2, 3)
    journal = directory.open(saved)
    journal.append(Entry(99, 3, (4,)), is_durable=True)
    journal.close()
    (again,) = directory.load()
    assert again.tokens == (1, 2, 3, 4)


def test_a_torn_tail_is_cut_before_more_is_appended(tmp_path: Path) -> None:
    path = written(tmp_path)
    os.truncate(path, path.stat().st_size - 5)
    directory = JournalDirectory(tmp_path)
    (saved,) = directory.load()
    journal = directory.open(saved)
    journal.append(Entry(99, len(saved.tokens), (6, 6), finished="limit"), is_durable=True)
    journal.close()
    (again,) = directory.load()
    assert again.tokens == (*saved.tokens, 6, 6)
    assert again.finished == "limit"


def test_what_stood_behind_a_wrong_line_never_comes_back(tmp_path: Path) -> None:
    """The line that takes the place of the wrong one may end just where an old one begins."""
    path = written(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"0" * (len(lines[3]) - 1) + b"\n", *lines[4:]]))
    directory = JournalDirectory(tmp_path)
    (saved,) = directory.load()
    assert saved.tokens == (1, 2, 3)
    journal = directory.open(saved)
    journal.append(Entry(1, 3, (6, 5)), is_durable=False)
    journal.close()
    assert len(path.read_bytes()) == sum(map(len, lines[:4])), "as long as the line that it replaces"
    (again,) = directory.load()
    assert again.tokens == (1, 2, 3, 6, 5)


def test_a_long_journal_is_rewritten_as_one_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_BYTES", 100)
    path = written(tmp_path)
    before = path.stat().st_size
    directory = JournalDirectory(tmp_path)
    (saved,) = directory.load()
    directory.open(saved).close()
    assert path.stat().st_size < before
    (again,) = directory.load()
    assert without_generation(again) == without_generation(saved)


def talk(path: Path, number: int) -> None:
    """A life of the agent in which a conversation is begun, or gone on with by one more turn."""
    directory = JournalDirectory(path)
    uid = f"{number:016x}"
    known = next((saved for saved in directory.load() if saved.uid == uid), None)
    journal = directory.create(replace(FRESH, uid=uid)) if known is None else directory.open(known)
    journal.append(STEPS[0][0], is_durable=True)
    journal.close()


def test_p18_the_session_of_the_last_turn_comes_first_whatever_the_clock_says(tmp_path: Path) -> None:
    """A board without a clock starts in 1970 each time; damaged files are left alone."""
    for number, clock_s in ((1, 100), (2, 300), (3, 1_900_000_000), (1, 200)):
        talk(tmp_path, number)
        os.utime(tmp_path / f"{number:016x}.journal", (clock_s, clock_s))
    (tmp_path / "0000000000000004.journal").write_bytes(b"\x00\xff garbage")
    assert [saved.uid[-1] for saved in JournalDirectory(tmp_path).load()] == ["1", "3", "2"]
    assert (tmp_path / "0000000000000004.journal").exists()


def test_a_session_in_which_nothing_was_said_is_none_to_go_on_with(tmp_path: Path) -> None:
    """A crash leaves its file; it goes when nobody has it open."""
    directory = JournalDirectory(tmp_path)
    unused = directory.create(replace(FRESH, uid="1" * 16))
    talk(tmp_path, 5)
    assert [saved.uid[-1] for saved in directory.load()] == ["5"]
    directory.remove_unused()
    assert len(list(tmp_path.iterdir())) == 2, "it may be used yet"
    unused.close()
    directory.remove_unused()
    assert [file.stem[-1] for file in tmp_path.iterdir()] == ["5"]


def test_what_a_power_cut_left_half_written_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)

    class PowerCutError(Exception):
        pass

    def cut(_descriptor: int) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch, contextlib.suppress(PowerCutError):
        patch.setattr(os, "fsync", cut)
        patch.setattr(Path, "unlink", lambda _path, missing_ok: missing_ok)
        JournalDirectory(tmp_path).create(FRESH)
    assert len(list(tmp_path.iterdir())) == 2
    JournalDirectory(tmp_path).remove_unused()
    assert list(tmp_path.iterdir()) == [path]


def test_on_a_read_only_disk_nothing_is_removed_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    directory = JournalDirectory(tmp_path)
    directory.create(replace(FRESH, uid="0" * 16)).close()
    (tmp_path / ".x.journal.00000000").touch()

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    directory.remove_unused()
    with pytest.raises(ConfigError, match="Read-only"):
        directory.remove(FRESH.uid)
    (saved,) = directory.load()
    with pytest.raises(ConfigError, match="Read-only"):
        directory.open(saved).remove()
    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(ConfigError, match="Read-only"):
        directory.check_unused(FRESH.uid)
    directory.remove_unused()
    assert path.exists()


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    directory = JournalDirectory(tmp_path)
    directory.create(FRESH).remove()
    directory.remove(FRESH.uid)
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_can_read_a_conversation(tmp_path: Path) -> None:
    assert written(tmp_path).stat().st_mode & 0o077 == 0


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        JournalDirectory(tmp_path / "file" / "journal")
    assert caught.value.hint


def test_a_uid_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="uid"):
        JournalDirectory(tmp_path).remove("../../etc/passwd")
