"""The conversations kept of a device in its journal and at the broker, while no agent runs: list, remove."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from device_agent.checkpoint_reader import CheckpointReader
from device_agent.config import DeviceConfig
from device_agent.journal import JournalDirectory
from device_agent.kept import Kept
from device_agent.saved import Saved
from device_agent.session import NO_SUBSCRIBER
from protocol.codec import encode
from protocol.errors import ConfigError, LinkError
from protocol.identifiers import LAST_GENERATION
from protocol.link import Link, LinkEvent, LinkOptions, Published
from protocol.messages import Window
from protocol.topics import STATE, WINDOW


@dataclass(frozen=True, slots=True)
class KeptSession:
    """One conversation.

    Attributes:
        n_tokens: of the longer copy.
        is_finished: whether its last answer had ended; `sled chat --resume` finishes one that had not.
        is_journalled: whether this device has it by itself.
        verifiers: those whose copies the broker keeps; None when the broker was not asked.
    """

    uid: str
    slot: int
    verifier: str
    n_tokens: int
    is_finished: bool
    is_journalled: bool
    verifiers: tuple[str, ...] | None


class Shelf:
    """Used while the device's agent does not run: it connects under the device's own name."""

    def __init__(self, config: DeviceConfig, timeout_s: float) -> None:
        """Nothing is read yet.

        Raises:
            ConfigError: the journal's directory cannot be made.
        """
        self._config = config
        self._timeout_s = timeout_s
        self._journals = JournalDirectory(config.journal_directory)

    def sessions_here(self) -> tuple[KeptSession, ...]:
        """What the journal has, the last used first; the broker is not asked."""
        return _merged(self._journals.load(), None)

    def sessions(self) -> tuple[KeptSession, ...]:
        """What journal and broker have, those of the journal first.

        Raises:
            LinkError: the broker cannot be reached, or does not answer in time.
        """
        with self._connection() as connection:
            return _merged(self._journals.load(), connection.read())

    def remove_here(self, uids: Iterable[str]) -> None:
        """Remove sessions from the journal alone; the broker's copies stay until they expire.

        Raises:
            ConfigError: one is open in another process; none is removed.
        """
        chosen = list(uids)
        for uid in chosen:
            self._journals.check_unused(uid)
        for uid in chosen:
            self._journals.remove(uid)

    def remove(self, uids: Iterable[str]) -> tuple[str, ...]:
        """Remove sessions everywhere: from their verifiers, the broker, and last the journal.

        Returns the verifiers that were not there to be told, as far as the broker says so: one that is only
        cut off comes back with its copy.

        Raises:
            ConfigError: one is open in another process; none is removed.
            LinkError: the broker cannot be reached or did not take it; the journal is as it was.
        """
        chosen = set(uids)
        for uid in chosen:
            self._journals.check_unused(uid)
        with self._connection() as connection:
            places = {(each.uid, each.verifier, each.slot) for each in self._journals.load()}
            places |= {(each.checkpoint.uid, each.verifier, each.slot) for each in connection.read()}
            for uid, verifier, slot in sorted(places):
                if uid in chosen:
                    connection.end(uid, verifier, slot)
            connection.wait()
        self.remove_here(chosen)
        return tuple(sorted(connection.absent))

    @contextmanager
    def _connection(self) -> Iterator[_Connection]:
        connection = _Connection(self._config, self._timeout_s)
        connection.link.start()
        try:
            connection.link.wait_connected(self._timeout_s)
            yield connection
        finally:
            connection.link.stop()


class _Connection:
    """The device's link for as long as the shelf needs it; for one thread."""

    def __init__(self, config: DeviceConfig, timeout_s: float) -> None:
        self._fleet, self._device = config.identity.fleet, config.identity.device
        self._timeout_s = timeout_s
        self._answers: SimpleQueue[Published] = SimpleQueue()
        self._waiting: set[int] = set()
        self._told: dict[int, str] = {}
        self.absent: set[str] = set()
        self.link = Link(config.endpoint, LinkOptions(self._device), self._on_event)
        self._reader = CheckpointReader(self.link, self._fleet, self._device)

    def read(self) -> tuple[Kept, ...]:
        """What the broker keeps; raises LinkError when it does not come in time."""
        return self._reader.read("none", self._timeout_s)

    def end(self, uid: str, verifier: str, slot: int) -> None:
        """Have the verifier drop the session, and clear its copy in case the verifier is not there."""
        names: dict[str, str | int] = {"v": verifier, "d": self._device, "n": slot}
        window = Window(
            uid=uid, generation=LAST_GENERATION, round=0, ack=0, base=0, hash="0" * 16, is_close=True
        )
        told = self.link.publish(WINDOW.topic(self._fleet, **names), encode(window))
        self._told[told] = verifier
        self._waiting.add(told)
        self._waiting.add(self.link.publish(STATE.topic(self._fleet, **names), b"", is_retained=True))

    def wait(self) -> None:
        """Return once everything was acknowledged.

        Raises:
            LinkError: not within the timeout.
        """
        until_s = time.monotonic() + self._timeout_s
        while self._waiting:
            try:
                answer = self._answers.get(timeout=max(0.0, until_s - time.monotonic()))
            except Empty:
                raise LinkError(
                    "the broker did not take it in time", hint="try again when the link is better"
                ) from None
            self._waiting.discard(answer.token)
            if answer.reason_code == NO_SUBSCRIBER and answer.token in self._told:
                self.absent.add(self._told[answer.token])

    def _on_event(self, event: LinkEvent) -> None:
        """On the network thread."""
        if not self._reader.feed(event) and isinstance(event, Published):
            self._answers.put(event)


def chosen_sessions(sessions: Iterable[KeptSession], names: Iterable[str]) -> tuple[KeptSession, ...]:
    """The sessions whose uids begin with `names`.

    Raises:
        ConfigError: a name fits none, or more than one.
    """
    known = tuple(sessions)
    found = []
    for name in names:
        fitting = [each for each in known if name and each.uid.startswith(name)]
        if len(fitting) != 1:
            what = "no conversation is" if not fitting else f"{len(fitting)} conversations are"
            raise ConfigError(f"{what} named {name!r:.40}", hint="see the names: sled session ls")
        found += fitting
    return tuple(dict.fromkeys(found))


def _merged(journalled: Iterable[Saved], kept: tuple[Kept, ...] | None) -> tuple[KeptSession, ...]:
    copies: dict[str, list[Kept]] = {}
    for each in kept or ():
        copies.setdefault(each.checkpoint.uid, []).append(each)
    rows = [_row(saved, copies.pop(saved.uid, []), is_asked=kept is not None) for saved in journalled]
    for found in copies.values():
        best = max(found, key=lambda each: (each.checkpoint.generation, len(each.checkpoint.tokens)))
        rows.append(
            KeptSession(
                uid=best.checkpoint.uid,
                slot=best.slot,
                verifier=best.verifier,
                n_tokens=len(best.checkpoint.tokens),
                is_finished=best.checkpoint.finished is not None,
                is_journalled=False,
                verifiers=tuple(sorted(each.verifier for each in found)),
            )
        )
    return tuple(rows)


def _row(saved: Saved, copies: list[Kept], *, is_asked: bool) -> KeptSession:
    return KeptSession(
        uid=saved.uid,
        slot=saved.slot,
        verifier=saved.verifier,
        n_tokens=max([len(saved.tokens), *(len(each.checkpoint.tokens) for each in copies)]),
        is_finished=saved.finished is not None,
        is_journalled=True,
        verifiers=tuple(sorted(each.verifier for each in copies)) if is_asked else None,
    )
