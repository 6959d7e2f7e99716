"""What one process published, received and showed, written down so that `kill -9` loses nothing of it.

A record is one line of JSON in a file of the process's own, written before the thing is done (publishing) or
acted upon (receiving). The product knows nothing of it: `record_links` puts a link in the
place of its own that writes everything down and passes it on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import orjson

from protocol.errors import LinkError
from protocol.link import Endpoint, Link, LinkEvent, LinkOptions, Published, Received
from protocol.topics import STATE, VERDICT, WINDOW

What = Literal[
    "published", "unsent", "acknowledged", "received", "turn", "shown", "finished", "failed", "closed"
]
_CHANNELS = (WINDOW, VERDICT, STATE)


@dataclass(frozen=True, slots=True)
class Record:
    """One line.

    Attributes:
        life: who, and which of its lives: `dev-1#2`.
        at_s: monotonic time of the machine, the same for all its processes.
        details: `topic` and `payload` of messages; `sequence` of a life's publishes; of turns what
            `bench.history` says.
    """

    life: str
    at_s: float
    what: What
    details: dict[str, Any]


class Recording:
    """The file of one life."""

    def __init__(self, file: Path, life: str) -> None:
        self._life = life
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, what: What, **details: Any) -> None:  # noqa: ANN401 - whatever JSON can say
        """Add one record; in the kernel's hands on return."""
        line = {"life": self._life, "at_s": time.monotonic(), "what": what, "details": details}
        os.write(self._descriptor, orjson.dumps(line) + b"\n")


def read_records(files: Sequence[Path]) -> list[Record]:
    """All records of all lives in the order of time; a torn last line is left out."""
    records = [Record(**orjson.loads(line)) for file in files for line in file.read_bytes().split(b"\n")[:-1]]
    return sorted(records, key=lambda record: record.at_s)


def record_links(recording: Recording, module: ModuleType) -> None:
    """From now on the links that `module` makes (the agent's or the service's) write to `recording`.

    Raises:
        ValueError: it makes none.
    """
    _check_makes_links(module)

    class RecordingLink(Link):
        """A link that writes down sessions' messages."""

        def __init__(
            self,
            endpoint: Endpoint,
            options: LinkOptions,
            on_event: Callable[[LinkEvent], None],
            *rest: Any,  # noqa: ANN401 - passed on
        ) -> None:
            self._recording_lock = threading.Lock()
            self._sequences: dict[int, int] = {}
            self._n_published = 0

            def record(event: LinkEvent) -> None:
                self._record(event)
                on_event(event)

            super().__init__(endpoint, options, record, *rest)

        def publish(self, topic: str, payload: bytes, **options: Any) -> int:  # noqa: ANN401 - passed on
            if not _is_session(topic):
                return super().publish(topic, payload, **options)
            with self._recording_lock:  # the answer must not overtake the note of its token
                self._n_published += 1
                sequence = self._n_published
                recording.write("published", topic=topic, payload=payload.decode(), sequence=sequence)
                try:
                    token = super().publish(topic, payload, **options)
                except LinkError:
                    recording.write("unsent", topic=topic, sequence=sequence)
                    raise
                self._sequences[token] = sequence
                return token

        def _record(self, event: LinkEvent) -> None:
            if isinstance(event, Received) and _is_session(event.topic):
                recording.write("received", topic=event.topic, payload=event.payload.decode())
            elif isinstance(event, Published):
                with self._recording_lock:
                    sequence = self._sequences.pop(event.token, None)
                if sequence is not None:
                    recording.write("acknowledged", sequence=sequence, reason_code=event.reason_code)

    vars(module)["Link"] = RecordingLink


def _check_makes_links(module: ModuleType) -> None:
    if vars(module).get("Link") is not Link:
        raise ValueError(f"{module.__name__} makes no links: name the module that does")


def _is_session(topic: str) -> bool:
    return any(channel.parse(topic) is not None for channel in _CHANNELS)
