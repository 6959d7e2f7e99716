"""The device's own copy of its sessions: one append-only file each, which survives power loss at any byte.

A file is a header line and one line for each step of the text (`device_agent.saved.Entry`). Every line
carries a checksum; reading stops at the first that is torn or wrong, and what stands before it is a state
that the session was in. A line is on disk for certain only after a durable append, which the session asks for
when the generation is raised and when a turn ends.

Generations are reserved ahead: a durable line holds the highest generation that may be used before the next
sync, so that raising it within a turn costs no write to a worn SD card.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from device_agent.saved import Entry, Saved
from protocol.atomic_file import SECRET_MODE, write_atomically
from protocol.errors import ConfigError
from protocol.identifiers import is_uid
from protocol.messages import SamplerSettings
from protocol.packed_tokens import PackedTokens

_logger = logging.getLogger(__name__)

SUFFIX = ".journal"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
"""Names by which `protocol.atomic_file` writes."""
RESERVED_GENERATIONS = 32
COMPACT_BYTES = 1 << 18
"""A file larger than this is rewritten as one state when its session is loaded."""


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    uid: str
    slot: int
    verifier: str
    target: str
    settings: SamplerSettings


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    generation: int
    start: int
    tokens: PackedTokens = ()
    verifier: str | None = None
    settings: SamplerSettings | None = None
    answer_start: int | None = None
    limit: int | None = None
    finished: str | None = None
    order: int | None = None


class _HoleError(Exception):
    """A step begins behind the text that it is to follow."""


class SessionJournal:
    """The open journal of one session; appended to by one thread.

    Args:
        next_order: numbers the turns of all sessions.
    """

    def __init__(self, path: Path, file: FileIO, reserved: int, next_order: Callable[[], int]) -> None:
        self._path = path
        self._file = file
        self._unwritten = b""
        self._reserved = reserved
        self._next_order = next_order

    def append(self, entry: Entry, *, is_durable: bool) -> None:
        """Add one step; when durable, it and all before it are on disk on return.

        What a full disk does not take goes there first with the next step: no line ever follows half a line.

        Raises:
            ConfigError: the disk is full or the directory is not writable.
        """
        if is_durable and entry.is_bare and entry.generation <= self._reserved:
            is_durable = False
        generation = entry.generation + (RESERVED_GENERATIONS if is_durable else 0)
        try:
            order = None if entry.answer_start is None else self._next_order()
            self._unwritten += _framed(_entry_fields(entry, generation, order))
            self._write()
            if is_durable:
                os.fsync(self._file.fileno())
                self._reserved = generation
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def close(self) -> None:
        """Close the file; it stays on disk, without what a full disk has kept out of it."""
        try:
            with self._file:
                self._write()
        except OSError as error:
            _logger.warning("%s", _unwritable(self._path, error))

    def remove(self) -> None:
        """The session is over: nothing of it stays.

        Raises:
            ConfigError: the directory is not writable.
        """
        self.close()
        _remove(self._path)

    def _write(self) -> None:
        while self._unwritten:
            n_written = self._file.write(self._unwritten)
            self._unwritten = self._unwritten[n_written:]


class JournalDirectory:
    """The journals of a device, one file for each session."""

    def __init__(self, directory: Path) -> None:
        """Use `directory`, which is made when it is not there.

        Raises:
            ConfigError: it cannot be made.
        """
        self._directory = directory
        self._order = 0
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise _unwritable(directory, error) from error

    def create(self, saved: Saved) -> SessionJournal:
        """The journal of a session, beginning with the state `saved`; replaces an older one atomically.

        Raises:
            ConfigError: the directory is not writable.
        """
        path = self._path(saved.uid)
        reserved = saved.generation + RESERVED_GENERATIONS
        state = _entry_fields(_whole(saved), reserved, saved.order or self._next_order())
        content = _framed(_header_fields(saved)) + _framed(state)
        try:
            write_atomically(path, content, mode=SECRET_MODE)
            return SessionJournal(path, _locked(path, "ab"), reserved, self._next_order)
        except OSError as error:
            raise _unwritable(path, error) from error

    def load(self) -> list[Saved]:
        """What each readable journal says, that of the last turn first; unreadable ones are left alone.

        A session in which nothing has been said is none to go on with.
        """
        return [saved for _, saved in self._states() if saved.tokens]

    def remove_unused(self) -> None:
        """Forget sessions in which nothing was said, as a crash leaves them, and that nobody has open.

        For the one process that writes here: what it left half written in an earlier life goes, too.
        """
        for path in self._directory.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        for path, saved in self._states():
            if not saved.tokens:
                with contextlib.suppress(ConfigError, OSError), _locked(path):
                    path.unlink(missing_ok=True)

    def _states(self) -> list[tuple[Path, Saved]]:
        files = sorted(self._directory.glob(f"*{SUFFIX}"))
        states = [(path, saved) for path in files if (saved := _read(path)) is not None]
        return sorted(states, key=lambda state: state[1].order, reverse=True)

    def _next_order(self) -> int:
        """One more than any in use; no clock would do, as a board without one starts in 1970 each time."""
        if self._order == 0:
            self._order = max((saved.order for _, saved in self._states()), default=0)
        self._order += 1
        return self._order

    def open(self, saved: Saved) -> SessionJournal:
        """Continue the journal of a loaded session; a torn tail is cut off first.

        Raises:
            ConfigError: the directory is not writable, or another process has the journal open.
        """
        path = self._path(saved.uid)
        try:
            file = _locked(path)
            _, n_good = _parsed(file.readall())
            if n_good > COMPACT_BYTES:
                with file:
                    return self.create(saved)
            file.truncate(n_good)
            file.seek(n_good)
        except OSError as error:
            raise _unwritable(path, error) from error
        return SessionJournal(path, file, saved.generation, self._next_order)

    def check_unused(self, uid: str) -> None:
        """See that nobody has the journal of `uid` open.

        Raises:
            ConfigError: another process has, or it is not writable.
        """
        path = self._path(uid)
        try:
            if path.exists():
                _locked(path).close()
        except OSError as error:
            raise _unwritable(path, error) from error

    def remove(self, uid: str) -> None:
        """Forget a session that is not open.

        Raises:
            ConfigError: the directory is not writable.
        """
        _remove(self._path(uid))

    def _path(self, uid: str) -> Path:
        if not is_uid(uid):
            raise ConfigError(f"{uid!r:.40} is not a session uid")
        return self._directory / f"{uid}{SUFFIX}"


def parse(content: bytes) -> Saved | None:
    """The state that a journal's bytes add up to; None when not even a whole first state is in them."""
    return _parsed(content)[0]


def _parsed(content: bytes) -> tuple[Saved | None, int]:
    """That state, and how many of the bytes it comes from."""
    saved: Saved | None = None
    header: _Header | None = None
    n_bytes = 0
    for line, fields in _lines(content):
        try:
            if header is None:
                header = _Header.model_validate(fields)
            else:
                saved = _next_state(saved or _empty(header), _Line.model_validate(fields))
        except (ValidationError, _HoleError):
            break
        n_bytes += len(line) + 1
    return saved, n_bytes


def _next_state(saved: Saved, line: _Line) -> Saved:
    if line.start > len(saved.tokens):
        raise _HoleError
    fields = dict(line)
    order = fields.pop("order")
    after = saved.after(Entry(**fields))
    return after if order is None else replace(after, order=order)


def _read(path: Path) -> Saved | None:
    try:
        saved = parse(path.read_bytes())
    except OSError as error:
        _logger.warning("journal %s cannot be read: %s", path.name, error)
        return None
    if saved is None or path.stem != saved.uid:
        _logger.warning("journal %s holds no session", path.name)
        return None
    return saved


def _lines(content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Whole, unharmed lines from the beginning on, and what they say."""
    *lines, _torn = content.split(b"\n")
    for line in lines:
        checksum, _, body = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(body):
            return
        try:
            fields = orjson.loads(body)
        except orjson.JSONDecodeError:
            return
        yield line, fields


def _framed(fields: dict[str, Any]) -> bytes:
    body = orjson.dumps(fields)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _header_fields(saved: Saved) -> dict[str, Any]:
    header = _Header(
        uid=saved.uid,
        slot=saved.slot,
        verifier=saved.verifier,
        target=saved.target,
        settings=saved.settings,
    )
    return header.model_dump()


def _entry_fields(entry: Entry, generation: int, order: int | None) -> dict[str, Any]:
    line = _Line(
        generation=generation,
        start=entry.start,
        tokens=entry.tokens,
        verifier=entry.verifier,
        settings=entry.settings,
        answer_start=entry.answer_start,
        limit=entry.limit,
        finished=entry.finished,
        order=order,
    )
    return line.model_dump(exclude_defaults=True)


def _whole(saved: Saved) -> Entry:
    """All of a state as one step from nothing."""
    return Entry(
        saved.generation,
        0,
        saved.tokens,
        answer_start=saved.answer_start,
        limit=saved.limit,
        finished=saved.finished,
    )


def _empty(header: _Header) -> Saved:
    return Saved(
        uid=header.uid,
        slot=header.slot,
        verifier=header.verifier,
        target=header.target,
        settings=header.settings,
        generation=0,
        tokens=(),
        answer_start=0,
        limit=0,
        finished=None,
    )


def _locked(path: Path, mode: Literal["ab", "r+b"] = "r+b") -> FileIO:
    """The file `path`, for this process alone until it is closed; what is written goes out at once."""
    file = path.open(mode, buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            f"conversation {path.stem} is open in another process",
            hint="leave that chat, or stop the agent that runs here",
        ) from None
    return file


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the journal {path} cannot be written: {error.strerror or error}",
        hint="make room on the disk, or make the directory writable for this user",
    )
