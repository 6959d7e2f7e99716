"""One conversation, for the program that shows it: messages in, events out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Self

from device_agent.actions import Action
from device_agent.chat_events import ChatEvent, Failed, Finished
from device_agent.settings import Settings
from device_agent.tokenizer import ChatMessage
from protocol.errors import SessionError
from protocol.messages import SamplerSettings

if TYPE_CHECKING:
    from device_agent.agent import DeviceAgent
    from device_agent.live_session import LiveSession


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How one chat differs from the device's settings; None means as the device is set."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    system_prompt: str | None = None

    def sampler(self, device: Settings, session: SamplerSettings) -> SamplerSettings:
        """The sampler's settings: these options first, then the device's; seed and attempt of `session`."""
        return SamplerSettings(
            temperature=device.temperature if self.temperature is None else self.temperature,
            top_k=device.top_k if self.top_k is None else self.top_k,
            top_p=device.top_p if self.top_p is None else self.top_p,
            seed=session.seed,
            attempt=session.attempt,
        )


class ChatSession:
    """A conversation; made by `DeviceAgent.chat`. Used by one thread, but `stop` may come from any.

    Each of `send`, `retry` and `continue_answer` starts a turn at once and returns its events; the last one
    is `Finished` or `Failed`. The next turn can begin when that has come.
    """

    def __init__(self, agent: DeviceAgent, options: ChatOptions, live: LiveSession) -> None:
        self._agent = agent
        self._options = options
        self._live = live

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def seed(self) -> int:
        """The seed in force; with the same one, the same messages get the same answers."""
        return self._live.machine.settings.seed

    @property
    def verifier(self) -> str:
        """Name of the verifier that checks this chat now."""
        return self._live.machine.binding.name

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens of the conversation so far."""
        return self._agent.call(lambda: self._live.machine.tokens)

    @property
    def text(self) -> str:
        """The conversation so far, turn by turn; what a resumed chat shows first."""
        return self._agent.tokenizer.transcript(self.tokens)

    @property
    def is_interrupted(self) -> bool:
        """Whether a restart cut the last answer off, so that `continue_answer` can finish it."""
        return self._agent.call(lambda: self._live.machine.is_interrupted)

    def send(self, message: str | Sequence[int]) -> Iterator[ChatEvent]:
        """Say something, as text or as the very tokens to append, and get the answer.

        Raises:
            SessionError: the message is empty or too long, or an answer is under way.
            ModelError: the chat template refuses the message.
        """
        context = self._context(message) if isinstance(message, str) else list(message)
        settings = self._options.sampler(self._agent.settings, self._live.machine.settings)
        max_tokens = self._options.max_tokens or self._agent.settings.max_tokens
        machine = self._live.machine
        return self._turn(lambda now_s: machine.start_turn(context, max_tokens, now_s, settings))

    def retry(self) -> Iterator[ChatEvent]:
        """Another answer to the last message; one under way is stopped.

        Raises:
            SessionError: nothing has been said.
        """
        self._agent.call(self._stop)
        return self._turn(self._live.machine.retry)

    def continue_answer(self) -> Iterator[ChatEvent]:
        """Go on with the answer that a restart cut off.

        Raises:
            SessionError: there is none.
        """
        machine = self._live.machine
        n_saved = self._agent.call(lambda: len(machine.tokens) - machine.answer_start)
        return self._turn(machine.continue_turn, n_saved)

    def stop(self) -> None:
        """End the answer under way; its events end with `Finished`."""
        self._agent.call(self._stop)

    def reset(self) -> None:
        """Forget the conversation and begin a new one, with a new seed unless one was asked for."""
        self.close()
        self._live = self._agent.open_session(self._options)

    def close(self, timeout_s: float = 2.0) -> None:
        """End the conversation at both ends and remove its journal; waits for the broker a little."""
        live, is_over = self._live, threading.Event()

        def close() -> None:
            live.on_closed = is_over.set
            live.perform(live.machine.close(self._agent.now_s()))

        if self._agent.call(lambda: self._agent.desk.is_open(live)):
            self._agent.call(close)
            if not is_over.wait(timeout_s):
                self._agent.call(lambda: live.perform(live.machine.end_close(self._agent.now_s())))

    def _turn(self, start: Callable[[float], Sequence[Action]], saved_answer: int = 0) -> Iterator[ChatEvent]:
        events: SimpleQueue[ChatEvent] = SimpleQueue()
        live = self._live
        self._agent.call(lambda: live.begin(start, events, saved_answer))
        return _until_end(events)

    def _stop(self) -> None:
        self._live.perform(self._live.machine.stop(self._agent.now_s()))

    def _context(self, text: str) -> list[int]:
        if not text.strip():
            raise SessionError("the message is empty", hint="type some text")
        tokens = self.tokens
        if tokens:
            return self._agent.tokenizer.next_turn(text, tokens[-1])
        messages = [ChatMessage("user", text)]
        system = self._options.system_prompt
        if system is None:
            system = self._agent.settings.system_prompt
        if system:
            messages.insert(0, ChatMessage("system", system))
        return self._agent.tokenizer.opening(messages)


def _until_end(events: SimpleQueue[ChatEvent]) -> Iterator[ChatEvent]:
    while True:
        event = events.get()
        yield event
        if isinstance(event, Finished | Failed):
            return
