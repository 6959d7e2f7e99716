"""Setting a device's configuration: a newer desired revision, and what the device makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import JsonValue, ValidationError

from protocol.errors import ConfigError
from protocol.fleet_messages import Desired, Reported, SettingRefusal

Outcome = Literal["applied", "partly_refused", "refused", "pending", "superseded"]
"""`pending`: the device has not answered yet and will when it is back; `superseded`: somebody else's newer
configuration is in force."""


@dataclass(frozen=True)
class ConfigOutcome:
    """What became of a wish.

    Attributes:
        config: the wanted keys as they are in force; empty while pending.
        refusals: of the wanted keys, each with the device's reason.
    """

    device: str
    revision: int
    state: Outcome
    config: Mapping[str, JsonValue]
    refusals: tuple[SettingRefusal, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "refusals": [refusal.model_dump() for refusal in self.refusals]}


@dataclass(frozen=True)
class ConfigChange:
    """One change on its way: publish `desired` retained, then `judge` what the device reports.

    Attributes:
        wanted: the keys that this change is about; None takes the wish for a key back.
    """

    device: str
    wanted: Mapping[str, JsonValue]
    desired: Desired

    @classmethod
    def over(
        cls,
        device: str,
        wanted: Mapping[str, Any],
        desired: Desired | None,
        reported: Reported | None,
    ) -> ConfigChange:
        """A change on top of what is desired now; earlier wishes for other keys stay.

        The revision is above the reported one, too: a broker may have come back with an old wish.

        Raises:
            ConfigError: nothing is wanted, a value cannot be sent, or a wish is taken back that is none.
        """
        if not wanted:
            raise ConfigError("no setting is named", hint="for example: temperature=0.5")
        before = desired.config if desired else {}
        for key, value in wanted.items():
            if value is None and key not in before:
                raise ConfigError(
                    f"the fleet wants no {key!r} of device {device}", hint=f"sled fleet show {device}"
                )
        merged = {**before, **wanted}
        config = {key: value for key, value in merged.items() if value is not None}
        revision = 1 + max(desired.revision if desired else 0, reported.revision if reported else 0)
        try:
            return cls(device, dict(wanted), Desired(revision=revision, config=config))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(str(part) for part in first["loc"][1:2])
            raise ConfigError(f"setting {key} cannot be sent: {first['msg']}") from error

    def judge(self, reported: Reported | None) -> ConfigOutcome | None:
        """The outcome that `reported` says; None while it answers an older revision."""
        revision = self.desired.revision
        if reported is None or reported.revision < revision:
            return None
        refusals = tuple(refusal for refusal in reported.refusals if refusal.key in self.wanted)
        refused = {refusal.key for refusal in refusals}
        in_force = {key: reported.config[key] for key in self.wanted if key in reported.config}
        is_ours = reported.revision == revision and all(
            value is None or key in refused or in_force.get(key) == value
            for key, value in self.wanted.items()
        )
        state: Outcome = "superseded"
        if is_ours:
            state = "refused" if refused == set(self.wanted) else "partly_refused" if refused else "applied"
        return ConfigOutcome(self.device, revision, state, in_force, refusals)

    def pending(self) -> ConfigOutcome:
        """The outcome while nothing has been reported."""
        return ConfigOutcome(self.device, self.desired.revision, "pending", {})
