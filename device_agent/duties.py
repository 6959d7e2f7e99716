"""A device's duties towards its fleet, as a pure machine: presence, configuration, commands, telemetry.

How a shell embeds it (`link` is a `protocol.link.Link`):

    memory = DutiesMemory.load(file content or None)        # home/journal/duties.json
    duties = FleetDuties(facts, config.settings, memory)
    link = Link(endpoint, LinkOptions(identity=facts.device, will=duties.will(), ...), enqueue)
    link.subscribe(duties.subscriptions())
    perform(duties.start(now_s))                            # before link.start()

    Disconnected event       perform(duties.on_disconnected())
    Received event           perform(duties.on_message(topic, payload, now_s))   # other topics: no action
    after each round or turn perform(duties.on_sessions(sessions, now_s)); perform(duties.on_rates(...))
    at `duties.wake_s`       perform(duties.on_tick(now_s))
    stopping                 link.stop(farewell=duties.farewell())

`perform` does the actions in order: `Save` durably (write, sync, rename) before the ones after it; `Retain`
by `link.retain` (the link asserts it again at each connect); `Send` by `link.publish(..., qos=0)`;
`Subscribe` and `Unsubscribe`; `ApplySettings` (sessions take them at their next turn); `RunCommand`, answered
by `duties.command_finished`; `Halt`: stop the link with `duties.farewell()`, tell the user, never reconnect.

All calls come from one thread. Times are monotonic seconds. Nothing that arrives raises.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from device_agent.command_desk import CommandDesk
from device_agent.device_facts import DeviceFacts
from device_agent.duties_memory import DutiesMemory
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
from device_agent.identity_watch import Finding, IdentityWatch
from device_agent.settings import Settings
from protocol.codec import decode, encode
from protocol.errors import MessageError
from protocol.fleet_messages import (
    CommandResponse,
    Desired,
    DeviceStatus,
    Reported,
    SessionHealth,
    SettingRefusal,
    Telemetry,
)
from protocol.link_types import Subscription, Will
from protocol.topics import COMMAND_REQUEST, COMMAND_RESPONSE, DESIRED, DEVICE_STATUS, REPORTED, TELEMETRY

_logger = logging.getLogger(__name__)

STATUS_INTERVAL_S = 5.0
"""Between two rewritings of the retained status because of session health; presence itself is at once."""


class FleetDuties:
    """See the module for how it is used.

    Args:
        settings: the device's own; what the fleet wants lies on top of them.
        commands: names of further commands that the shell can run; `ping` is answered here.
    """

    def __init__(
        self, facts: DeviceFacts, settings: Settings, memory: DutiesMemory, commands: Collection[str] = ()
    ) -> None:
        self._facts = facts
        self._own_settings = settings
        self._memory = memory.after_restart()
        self._desk = CommandDesk(commands)
        self._settings, self._refusals = settings.changed(memory.wanted)
        self._status_topic = DEVICE_STATUS.topic(facts.fleet, d=facts.device)
        self._desired_topic = DESIRED.topic(facts.fleet, d=facts.device)
        self._sessions: tuple[SessionHealth, ...] = ()
        self._status_sent_s = float("-inf")
        self._is_status_stale = False
        self._rates: Telemetry | None = None
        self._telemetry_sent_s = float("-inf")
        self._watch = IdentityWatch(facts.incarnation)
        self._problem = ""
        self._yields_to = ""
        self._is_leaving = self._has_left = False

    @property
    def settings(self) -> Settings:
        """The settings in force: the device's own with those that the fleet changed."""
        return self._settings

    # ---- the connection

    def will(self) -> Will:
        """What the broker says when this device dies."""
        status = self._facts.status(is_online=False, is_lost=True)
        return Will(self._status_topic, encode(status))

    def farewell(self) -> tuple[str, bytes]:
        """Topic and payload of the last word of an orderly stop."""
        return self._status_topic, encode(self._own_facts(is_online=False))

    def subscriptions(self) -> tuple[Subscription, ...]:
        """What the link is to be subscribed to from the start."""
        fleet, device = self._facts.fleet, self._facts.device
        commands = COMMAND_REQUEST.filter(fleet, d=device)
        return (Subscription(self._desired_topic), Subscription(commands), Subscription(self._status_topic))

    def start(self, now_s: float) -> list[Action]:
        """Birth, configuration in force, and open commands, before the first connect."""
        self._memory = self._memory.with_life(self._facts.incarnation)
        actions: list[Action] = [Save(self._memory.dump()), *self._status(now_s), self._reported()]
        if self._memory.commands:
            actions.append(self._response())
        return actions

    def on_disconnected(self) -> list[Action]:
        """Listen to the own status again, from before the next birth until that comes back.

        In between the broker tells it what another board with this identity has said.
        """
        return [Subscribe(Subscription(self._status_topic))]

    def on_message(self, topic: str, payload: bytes, now_s: float) -> list[Action]:
        """Whatever arrived; topics that are none of the fleet's are ignored."""
        if topic == self._status_topic:
            return self._own_status(payload, now_s)
        if topic == self._desired_topic:
            return self._desired(payload) if payload else []
        names = COMMAND_REQUEST.parse(topic)
        if names is None or names["d"] != self._facts.device:
            return []
        return self._request(names["id"], payload, now_s)

    def on_tick(self, now_s: float) -> list[Action]:
        """What a rate limit held back and is due now."""
        actions: list[Action] = []
        if self._is_status_stale and now_s >= self._status_sent_s + STATUS_INTERVAL_S:
            actions += self._status(now_s)
        interval_s = self._settings.telemetry_interval_s
        if self._rates is not None and interval_s and now_s >= self._telemetry_sent_s + interval_s:
            topic = TELEMETRY.topic(self._facts.fleet, d=self._facts.device)
            actions.append(Send(topic, encode(self._rates)))
            self._telemetry_sent_s, self._rates = now_s, None
        return actions

    @property
    def wake_s(self) -> float | None:
        """When `on_tick` has something to do; None while it has not."""
        due = []
        if self._is_status_stale:
            due.append(self._status_sent_s + STATUS_INTERVAL_S)
        if self._rates is not None and self._settings.telemetry_interval_s:
            due.append(self._telemetry_sent_s + self._settings.telemetry_interval_s)
        return min(due, default=None)

    # ---- what the device tells of itself

    def on_sessions(self, sessions: tuple[SessionHealth, ...], now_s: float) -> list[Action]:
        """The health of all open sessions; at a turn's end, or whenever it is at hand."""
        if sessions != self._sessions:
            self._sessions = sessions
            self._is_status_stale = True
        return self.on_tick(now_s)

    def on_rates(
        self,
        *,
        tokens_per_s: float,
        acceptance: float,
        round_ms: float,
        draft_tokens_per_s: float,
        now_s: float,
    ) -> list[Action]:
        """The rates of a busy device; an idle one does not call this, and sends nothing."""
        self._rates = Telemetry(
            incarnation=self._facts.incarnation,
            tokens_per_s=tokens_per_s,
            acceptance=acceptance,
            round_ms=round_ms,
            draft_tokens_per_s=draft_tokens_per_s,
        )
        return self.on_tick(now_s)

    def command_finished(
        self, command_id: str, *, result: Mapping[str, Any] | None = None, error: str = ""
    ) -> list[Action]:
        """A `RunCommand` ended, with a result or an error."""
        return self._remember_commands(self._desk.finished(self._memory, command_id, result or {}, error))

    # ---- inside

    def _status(self, now_s: float) -> list[Action]:
        self._status_sent_s, self._is_status_stale = now_s, False
        return [Retain(self._status_topic, encode(self._own_facts(is_online=not self._is_leaving)))]

    def _own_facts(self, *, is_online: bool) -> DeviceStatus:
        return self._facts.status(
            is_online=is_online,
            problem=self._problem,
            yields_to=self._yields_to,
            others=self._watch.others,
            sessions=self._sessions,
        )

    def _own_status(self, payload: bytes, now_s: float) -> list[Action]:
        status = _decoded_status(payload)
        if status is None or self._has_left:
            return []
        if self._is_leaving:
            is_own = status.incarnation == self._facts.incarnation
            self._has_left = is_own and not (status.is_online or status.is_lost)
            return [Halt(self._problem)] if self._has_left else []
        match self._watch.look(status, self._memory.lives):
            case "own_birth":
                return [Unsubscribe(self._status_topic)]
            case "heard":
                return self._status(now_s)
            case "stay" | "leave" as finding:
                return self._meet(status, finding, now_s)
            case "nothing":
                return []

    def _meet(self, other: DeviceStatus, finding: Finding, now_s: float) -> list[Action]:
        """Another board has this identity: say so, and go on, or leave once the broker has heard it.

        The other one may throw us out before that; then it is said at the next connect. Who goes on answers
        each time, at once, or the other would wait for the next assertion, and might miss it.
        """
        problem = (
            f"another board uses the identity {self._facts.device}:"
            f" serial {other.serial or 'unknown'}, this one has {self._facts.serial or 'none'};"
            f" this one {'goes on' if finding == 'stay' else 'has stopped'}"
        )
        if problem != self._problem:
            _logger.warning("%s", problem)
        self._problem = problem
        if finding == "stay":
            return self._status(now_s)
        self._is_leaving, self._yields_to = True, other.incarnation
        return [Subscribe(Subscription(self._status_topic)), *self._status(now_s)]

    def _desired(self, payload: bytes) -> list[Action]:
        try:
            desired = decode(Desired, payload)
        except MessageError as error:
            _logger.warning("desired configuration ignored: %s", error)
            refusal = SettingRefusal(key="desired", reason=str(error)[:300])
            return [self._reported(refusal)]
        is_known = (desired.revision, desired.config) == (self._memory.revision, self._memory.wanted)
        if is_known or desired.revision < self._memory.revision:
            return []
        before = self._settings
        self._settings, self._refusals = self._own_settings.changed(desired.config)
        self._memory = self._memory.with_desired(desired.revision, desired.config)
        actions: list[Action] = [Save(self._memory.dump())]
        if self._settings != before:
            actions.append(ApplySettings(self._settings))
        return [*actions, self._reported()]

    def _reported(self, *refusals: SettingRefusal) -> Retain:
        reported = Reported(
            revision=self._memory.revision,
            config=self._settings.for_fleet(),
            refusals=(*self._refusals, *refusals),
        )
        return Retain(REPORTED.topic(self._facts.fleet, d=self._facts.device), encode(reported))

    def _request(self, command_id: str, payload: bytes, now_s: float) -> list[Action]:
        facts = {"incarnation": self._facts.incarnation, "agent_version": self._facts.agent_version}
        memory, run = self._desk.request(self._memory, command_id, payload, pong=facts)
        del now_s
        actions = self._remember_commands(memory)
        return [*actions, run] if run else actions

    def _remember_commands(self, memory: DutiesMemory) -> list[Action]:
        if memory == self._memory:
            return []
        self._memory = memory
        return [Save(memory.dump()), self._response()]

    def _response(self) -> Retain:
        document = CommandResponse(commands=self._memory.commands)
        return Retain(COMMAND_RESPONSE.topic(self._facts.fleet, d=self._facts.device), encode(document))


def _decoded_status(payload: bytes) -> DeviceStatus | None:
    try:
        return decode(DeviceStatus, payload) if payload else None
    except MessageError as error:
        _logger.warning("message on the own status topic ignored: %s", error)
        return None
