"""The demo's fleet: broker, verifier and devices in one folder, through the same code as real ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cli.agents import agent_of
from cli.chat.answer import Answer, collect
from cli.chat.printer import Printer
from cli.diagnostics import say
from cli.installed import ensure_installed
from cli.provisioned import provision
from cli.site import Site
from cli.site_watch import SiteWatch
from cli.targets import resolve_draft, resolve_target
from device_agent.agent import DeviceAgent
from device_agent.chat import ChatOptions, ChatSession
from device_agent.controller import ControllerOptions
from protocol.errors import ConfigError, LinkError, SledError
from protocol.identifiers import new_seed
from protocol.messages import SamplerSettings
from provisioning.bundle import ModelFiles
from provisioning.fleet_directory import FleetDirectory

if TYPE_CHECKING:
    from edge_verifier.engines import Reference

LOAD_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 30.0
_LOOK_S = 1.0
"""How often is looked whether it still makes sense to wait for a verifier."""


@dataclass(frozen=True)
class DemoOptions:
    """What the demo runs; `drafts` are given to the devices in turn.

    Attributes:
        controller: bounds of speculation; None leaves them to the device's settings.
        verbosity: of the verifier's log.
    """

    n_devices: int
    drafts: tuple[str, ...]
    target: str | None
    dtype: str | None
    threads: int | None
    verifier_log: Path | None
    chat: ChatOptions
    controller: ControllerOptions | None = None
    verbosity: int = 0

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse what cannot work before anything is started.

        Raises:
            ConfigError: a prompt is empty.
            ModelError: target or draft cannot be used.
        """
        if not all(prompt.strip() for prompt in prompts):
            raise ConfigError("the prompt is empty", hint="sled demo --prompt 'lower the kitchen blinds'")
        resolve_target(self.target)
        for draft in self.drafts:
            ModelFiles.of(resolve_draft(draft).file)


@dataclass
class DemoAnswer:
    """One device's answer to one prompt; `is_identical` is None until it has been compared."""

    device: str
    draft: str
    prompt: str
    dtype: str
    max_tokens: int
    answer: Answer
    is_identical: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """One line of `sled demo --json`."""
        compared = {} if self.is_identical is None else {"identical_to_target": self.is_identical}
        named = {"device": self.device, "draft": self.draft, "prompt": self.prompt, "dtype": self.dtype}
        return named | self.answer.to_json() | compared


@dataclass(frozen=True)
class DemoDevice:
    """A running device of the demo."""

    name: str
    draft: str
    agent: DeviceAgent


class DemoFleet:
    """Everything in `folder`, running inside a `with` block."""

    def __init__(self, folder: Path, options: DemoOptions) -> None:
        self._folder = folder
        self._options = options
        self._parts = ExitStack()
        self._devices: list[DemoDevice] = []
        self._dtype = ""
        self._loss: SledError | None = None
        self._on_loss: Callable[[SledError], None] | None = None

    def __enter__(self) -> Self:
        options = self._options
        with ExitStack() as parts:
            fleet = FleetDirectory.create(self._folder / "fleet", fleet="demo")
            site = Site(
                fleet,
                target=options.target,
                dtype=options.dtype,
                threads=options.threads,
                log_file=options.verifier_log or self._folder / "verifier.log",
                verbosity=options.verbosity,
            )
            parts.enter_context(site)
            # The target loads in its own process while the devices are provisioned and started.
            for number in range(1, options.n_devices + 1):
                self._devices.append(self._add_device(fleet, site, number, parts))
            self._dtype = str(site.wait_ready(LOAD_TIMEOUT_S)["dtype"])
            for device in self._devices:
                device.agent.wait_ready(CONNECT_TIMEOUT_S)
            parts.enter_context(SiteWatch(site, self._lose))
            self._parts = parts.pop_all()
        say(f"broker, verifier and {options.n_devices} device(s) are running, over mutual TLS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.close()

    def on_loss(self, call: Callable[[SledError], None]) -> None:
        """Have `call` told, on any thread, when broker or verifier has ended for good, now or before.

        Without it the answers under way end with the error.
        """
        self._on_loss = call
        if self._loss is not None:
            call(self._loss)

    def open_chat(self) -> ChatSession:
        """A conversation on the first device."""
        return self._open(self._devices[0], self._options.chat)

    def answer(self, prompts: Sequence[str], *, live: bool) -> list[DemoAnswer]:
        """Have the prompts answered, dealt to the devices in turn; each device gets at least one.

        Answers are in the order of the prompts. With a seed given, answer i has seed + i.

        Args:
            live: stream the answers to the terminal.

        Raises:
            SledError: an answer failed, or broker or verifier has ended for good.
        """
        n_answers = max(len(prompts), len(self._devices))
        jobs = list(enumerate(islice(cycle(prompts), n_answers)))
        show = Printer().show if live else None

        def work(device_index: int) -> list[tuple[int, DemoAnswer]]:
            device = self._devices[device_index]
            mine = jobs[device_index :: len(self._devices)]
            return [(index, self._ask(device, index, prompt, show)) for index, prompt in mine]

        with ThreadPoolExecutor(len(self._devices), thread_name_prefix="demo") as pool:
            answers = [answer for part in pool.map(work, range(len(self._devices))) for answer in part]
        return [answer for _, answer in sorted(answers, key=lambda item: item[0])]

    def compare(self, answers: Sequence[DemoAnswer]) -> None:
        """Run the target alone, one token at a time, and set `is_identical` of each answer."""
        from edge_verifier.engines import load_reference

        alone = load_reference(resolve_target(self._options.target), self._dtype)
        for answer in answers:
            answer.is_identical = _is_identical(alone, answer.answer, answer.max_tokens)

    def _add_device(self, fleet: FleetDirectory, site: Site, number: int, parts: ExitStack) -> DemoDevice:
        name = f"demo-{number}"
        draft = self._options.drafts[(number - 1) % len(self._options.drafts)]
        bundle = provision(
            fleet,
            name,
            model=draft,
            out=self._folder / f"{name}.sled",
            host="localhost",
            port=site.address.device_port,
            settings={},
        )
        home = self._folder / name
        ensure_installed(bundle, home)
        agent = agent_of(home, controller=self._options.controller)
        return DemoDevice(name, draft, parts.enter_context(agent))

    def _ask(self, device: DemoDevice, index: int, prompt: str, show: Any) -> DemoAnswer:  # noqa: ANN401 - a callback or None
        base = self._options.chat.seed
        seed = new_seed() if base is None else (base + index) % 2**64
        with self._open(device, replace(self._options.chat, seed=seed)) as session:
            events = session.send(prompt)
            self._check()  # a loss before the sending has ended nothing
            answer = collect(events, show)
        max_tokens = self._options.chat.max_tokens or device.agent.settings.max_tokens
        return DemoAnswer(device.name, device.draft, prompt, self._dtype, max_tokens, answer)

    def _open(self, device: DemoDevice, options: ChatOptions) -> ChatSession:
        """A conversation; while the verifier is being started again this waits for it."""
        until_s = time.monotonic() + LOAD_TIMEOUT_S
        while True:
            self._check()
            try:
                device.agent.wait_ready(_LOOK_S)
                return device.agent.chat(options)
            except LinkError as error:
                if not error.is_retryable or time.monotonic() > until_s:
                    raise

    def _check(self) -> None:
        if self._loss is not None:
            raise self._loss

    def _lose(self, loss: SledError) -> None:
        """Nobody will answer any more. On the watch's thread."""
        self._loss = loss
        if self._on_loss is not None:
            self._on_loss(loss)
            return
        for device in self._devices:
            device.agent.call(partial(device.agent.desk.give_up_all, loss))


def _is_identical(alone: Reference, answer: Answer, max_tokens: int) -> bool:
    stats = answer.stats
    settings = SamplerSettings(
        temperature=stats.temperature,
        top_k=stats.top_k,
        top_p=stats.top_p,
        seed=stats.seed,
        attempt=stats.attempt,
    )
    limit = len(stats.prompt_ids) + max_tokens
    return alone.generate(stats.prompt_ids, settings, limit) == list(stats.token_ids)
