"""One device of a chaos run, as a process: it holds conversations until SIGTERM, and goes on after `kill -9`.

    python -m bench.chaos_device HOME RECORD LIFE --pair bundled|table --seed N

After SIGTERM it finishes the conversation under way and ends with exit code 0.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import device_agent.agent
from bench.chaos_models import PAIRS, TablePace, new_agent
from bench.recording import Recording, record_links
from device_agent.agent import DeviceAgent
from device_agent.chat import ChatOptions, ChatSession
from device_agent.chat_events import ChatEvent, Failed, Finished, TextDelta
from protocol.errors import SledError

RETRY_S = 0.5
READY_S = 5.0
PROMPTS = (
    "lower the kitchen blinds",
    "is the front door locked?",
    "set the bedroom light to twenty percent and make it warm",
    "what is the temperature in the office",
    "tell me about the garden lights",
    "turn everything off, please",
    "thank you",
)
MAX_TURNS = 4


class Talker:
    """Conversations on one device, each step recorded."""

    def __init__(self, agent: DeviceAgent, recording: Recording, chance: random.Random) -> None:
        self._agent = agent
        self._recording = recording
        self._chance = chance

    def run(self, stop: threading.Event) -> None:
        """Talk until `stop` is set and the conversation under way is over."""
        while not stop.is_set() or self._is_any_left():
            try:
                self._agent.wait_ready(READY_S)
                chat = self._open()
            except SledError as error:  # no broker or no verifier: later
                if self._agent.halt_reason:
                    sys.exit(self._agent.halt_reason)
                print(f"waiting: {error}", file=sys.stderr, flush=True)
                stop.wait(RETRY_S)
                threading.Event().wait(RETRY_S)
                continue
            self._converse(chat, stop)

    def _is_any_left(self) -> bool:
        return any(self._agent.config.journal_directory.glob("*.journal"))

    def _open(self) -> ChatSession:
        options = ChatOptions(
            temperature=self._chance.choice((0.0, 0.7, 1.0)), max_tokens=self._chance.randint(10, 120)
        )
        return self._agent.chat(options, resume=self._is_any_left())

    def _converse(self, chat: ChatSession, stop: threading.Event) -> None:
        if chat.is_interrupted:
            at = len(chat.tokens)
            self._turn(chat, chat.continue_answer(), at)
        for _ in range(self._chance.randint(1, MAX_TURNS)):
            if stop.is_set():
                break
            try:
                events = chat.send(self._chance.choice(PROMPTS))
            except SledError as error:  # the context is full
                print(f"ending: {error}", file=sys.stderr, flush=True)
                break
            self._turn(chat, events, None)
        uid = chat._live.machine.uid  # noqa: SLF001 - the public side has no use for it
        chat.close()
        self._recording.write("closed", uid=uid)

    def _turn(self, chat: ChatSession, events: Iterator[ChatEvent], at: int | None) -> None:
        """Follow one answer; `at` is the first position that is shown, None for the answer's start."""
        machine = chat._live.machine  # noqa: SLF001 - as above
        start = machine.answer_start
        self._recording.write(
            "turn",
            uid=machine.uid,
            at=start if at is None else at,
            prompt=chat.tokens[:start],
            settings=machine.settings.model_dump(),
            limit=machine.limit,
        )
        for event in events:
            match event:
                case TextDelta(_, tokens) if tokens:
                    self._recording.write("shown", uid=machine.uid, tokens=tokens)
                case Finished(reason, stats):
                    self._recording.write("finished", uid=machine.uid, reason=reason, tokens=stats.token_ids)
                case Failed(error):
                    self._recording.write("failed", uid=machine.uid, error=str(error))
                case _:
                    pass


def main() -> None:
    """Run one life of one device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("life")
    parser.add_argument("--pair", choices=PAIRS, default="bundled")
    parser.add_argument("--draft-s", type=float, default=0.0, help="of a table's token")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    recording = Recording(arguments.record, arguments.life)
    record_links(recording, device_agent.agent)
    with new_agent(arguments.pair, arguments.home, TablePace(draft_s=arguments.draft_s)) as agent:
        Talker(agent, recording, random.Random(f"{arguments.seed} {arguments.life}")).run(stop)


if __name__ == "__main__":
    main()
