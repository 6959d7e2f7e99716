"""A device with nothing but its duties towards the fleet, for tests of both ends over a real broker."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Self

from device_agent.command_desk import RunCommand
from device_agent.device_facts import DeviceFacts
from device_agent.duties import FleetDuties
from device_agent.duties_memory import DutiesMemory
from device_agent.duties_shell import Command
from device_agent.fleet_actions import (
    Action,
    ApplySettings,
    Halt,
    Retain,
    Save,
    Send,
    Subscribe,
    Unsubscribe,
)
from device_agent.settings import Settings
from protocol.errors import SledError
from protocol.identifiers import new_incarnation
from protocol.link import Disconnected, Endpoint, Link, LinkEvent, LinkOptions, Received
from tests.live_fleet import FAST, LiveFleet


class FleetDevice:
    """Embeds `FleetDuties` as its module describes; one thread, ended by the `with` block.

    Attributes:
        memory: what it would find on its disk.
        applied: settings that the fleet changed, in order.
        halted: set with the reason in `halt_reason` when it stopped for good.
    """

    def __init__(
        self,
        live: LiveFleet,
        device: str,
        *,
        memory: bytes | None = None,
        commands: Mapping[str, Command] | None = None,
        endpoint: Endpoint | None = None,
        **facts: Any,
    ) -> None:
        self._commands = commands or {}
        self.memory = memory
        self.applied: list[Settings] = []
        self.configured = threading.Event()
        self.halted = threading.Event()
        self.halt_reason = ""
        self._is_stopped = False
        incarnation = facts.pop("incarnation", None) or new_incarnation()
        self.facts = DeviceFacts(fleet="f", device=device, incarnation=incarnation, **facts)
        self.duties = FleetDuties(self.facts, Settings(), DutiesMemory.load(memory), tuple(self._commands))
        self._events: queue.SimpleQueue[LinkEvent | None] = queue.SimpleQueue()
        options = LinkOptions(device, keepalive_s=2, will=self.duties.will(), **FAST)
        self.link = Link(endpoint or live.endpoint(device), options, self._events.put)
        self._thread = threading.Thread(target=self._run, name=f"device-{device}")

    def __enter__(self) -> Self:
        self.link.subscribe(self.duties.subscriptions())
        self._perform(self.duties.start(time.monotonic()))
        self._thread.start()
        self.link.start()
        self.link.wait_connected(10)
        self.link.wait_subscribed(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(farewell=True)

    def stop(self, *, farewell: bool) -> None:
        """End in order; `farewell` False leaves the last status as it is."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self._events.put(None)
        self._thread.join()
        if not self.halted.is_set():
            self.link.stop(farewell=self.duties.farewell() if farewell else None)

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            if isinstance(event, Disconnected):
                self._perform(self.duties.on_disconnected())
            elif isinstance(event, Received):
                self._perform(self.duties.on_message(event.topic, event.payload, event.at_s))

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Save(content):
                    self.memory = content
                case Retain(topic, payload):
                    self.link.retain(topic, payload)
                case Send(topic, payload):
                    self.link.publish(topic, payload, qos=0)
                case Subscribe(subscription):
                    self.link.subscribe([subscription])
                case Unsubscribe(topic_filter):
                    self.link.unsubscribe(topic_filter)
                case ApplySettings(settings):
                    self.applied.append(settings)
                    self.configured.set()
                case RunCommand():
                    self._perform(self._answer(action))
                case Halt(reason):
                    self.halt_reason = reason
                    self.link.stop(farewell=self.duties.farewell())
                    self.halted.set()
                    return
                case _:
                    raise AssertionError(f"unexpected {action}")

    def _answer(self, command: RunCommand) -> list[Action]:
        try:
            result = self._commands[command.name](command.arguments)
        except SledError as error:
            return self.duties.command_finished(command.id, error=str(error))
        return self.duties.command_finished(command.id, result=result)
