"""Answers that a power cut ended in the middle are finished by the device itself, with nobody watching.

Whoever resumes the conversation then finds the answer complete. What is under way when the agent stops stays
cut off, for the next time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from device_agent.agent import DeviceAgent
from device_agent.chat_events import ChatEvent, Failed, Finished
from device_agent.live_session import LiveSession
from protocol.errors import SledError

LOOK_S = 0.2
RETRY_S = 2.0
LONGEST_RETRY_S = 300.0
"""After failures in a row, such as on a full disk."""

_logger = logging.getLogger(__name__)


@contextmanager
def finishing(agent: DeviceAgent) -> Iterator[None]:
    """Finish such answers in the background for as long as this lasts."""
    stop = threading.Event()
    thread = threading.Thread(target=finish_cut_off, args=(agent, stop), name="unattended", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def finish_cut_off(agent: DeviceAgent, stop: threading.Event) -> int:
    """Finish them one after another, and wait for their verifiers; how many were finished until `stop`."""
    n_finished = n_failed = 0
    while not stop.is_set() and not agent.halt_reason:
        try:
            agent.wait_ready(LOOK_S)
            live = agent.cut_off_session()
            if live is not None:
                is_finished = _finish(agent, live, stop)
                n_finished, n_failed = n_finished + is_finished, 0 if is_finished else n_failed + 1
                if n_failed:
                    stop.wait(min(RETRY_S * 2.0 ** min(n_failed - 1, 16), LONGEST_RETRY_S))
            elif not agent.call(lambda: agent.desk.has_cut_off):
                break
            else:
                stop.wait(RETRY_S)
        except SledError as error:
            _logger.info("answers that were cut off wait: %s", error)
            stop.wait(RETRY_S)
    return n_finished


def _finish(agent: DeviceAgent, live: LiveSession, stop: threading.Event) -> bool:
    events: SimpleQueue[ChatEvent] = SimpleQueue()
    try:
        agent.call(lambda: live.begin(live.machine.continue_turn, events))
        end = _end_of(events, stop)
    finally:
        agent.call(lambda: agent.desk.let_go(live))
    if isinstance(end, Failed):
        _logger.warning("an answer that was cut off cannot be finished: %s", end.error)
    elif end is not None:
        _logger.info("an answer that was cut off is finished: %d tokens", len(live.machine.tokens))
    return isinstance(end, Finished)


def _end_of(events: SimpleQueue[ChatEvent], stop: threading.Event) -> Finished | Failed | None:
    while not stop.is_set():
        try:
            event = events.get(timeout=LOOK_S)
        except Empty:
            continue
        if isinstance(event, Finished | Failed):
            return event
    return None
