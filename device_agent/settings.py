"""The settings of a device: how it drafts, samples and reports; and which of them the fleet may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import ConfigError
from protocol.fleet_messages import SettingRefusal
from protocol.messages import MAX_DISPLAY_RATE_TOKENS_S, MAX_DRAFT
from protocol.unknown_key import unknown_key

CHANGEABLE_BY_FLEET = frozenset(
    {
        "temperature",
        "top_k",
        "top_p",
        "max_tokens",
        "max_draft",
        "system_prompt",
        "verifier",
        "display_rate_tokens_s",
        "telemetry_interval_s",
        "download_kib_per_s",
    }
)
"""What the user's privacy depends on, and what the hardware dictates, stays with the device."""


class Settings(BaseModel):
    """The `[settings]` of a device; every one has a default.

    Attributes:
        temperature, top_k, top_p: how tokens are chosen; temperature 0 is greedy, top_k 0 and top_p 1 switch
            those filters off.
        max_tokens: length of an answer at most.
        max_draft: tokens in one window at most; 0 switches drafting off.
        system_prompt: put before every conversation; empty uses the model's own.
        verifier: the verifier to use while it is there; empty chooses by itself.
        keep_checkpoint: False keeps conversations out of the broker.
        checkpoint_retention_s: how long the broker keeps a conversation after its last change.
        offline: what the device does while no verdict comes: `wait`, or `local`: go on with the draft model
            alone, shown as unverified until the target has confirmed or replaced it.
        display_rate_tokens_s: how fast answers are read, which the verifier's planner goes by, from the next
            conversation on; 0 leaves it to the verifier.
        telemetry_interval_s: seconds between two telemetry messages of a busy device; 0 sends none.
        download_kib_per_s: how fast a new draft model may come, over MQTT or HTTPS; 0 is as fast as it can.
        draft_threads: CPU threads of the drafter; 0 leaves the choice to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    temperature: float = Field(default=0.7, ge=0.0, le=10.0)
    top_k: int = Field(default=0, ge=0, le=256)
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)
    max_tokens: int = Field(default=256, ge=1, le=100_000)
    max_draft: int = Field(default=6, ge=0, le=MAX_DRAFT)
    system_prompt: str = Field(default="", max_length=4_000)
    verifier: str = Field(default="", pattern=r"^[a-z0-9-]{0,48}$")
    keep_checkpoint: bool = True
    checkpoint_retention_s: int = Field(default=86_400, ge=60, le=30 * 86_400)
    offline: Literal["wait", "local"] = "wait"
    display_rate_tokens_s: float = Field(default=0.0, ge=0.0, le=MAX_DISPLAY_RATE_TOKENS_S)
    telemetry_interval_s: float = Field(default=10.0, ge=0.0, le=86_400.0)
    download_kib_per_s: int = Field(default=0, ge=0, le=10_000_000)
    draft_threads: int = Field(default=0, ge=0, le=1_024)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """The defaults with `values` on top, whoever may change them.

        Raises:
            ConfigError: a key is unknown or a value not legal; it names the key.
        """
        for key in values:
            if key not in cls.model_fields:
                raise ConfigError(f"setting {unknown_key(key, cls.model_fields)}")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ConfigError(f"setting {first['loc'][0]}: {first['msg']}") from error

    def changed(self, wanted: Mapping[str, Any]) -> tuple[Settings, tuple[SettingRefusal, ...]]:
        """These settings with those of the fleet's `wanted` that are legal, and why the others are not.

        Each key is judged by itself: one bad value does not keep the good ones out.
        """
        settings, refusals = self, []
        for key, value in wanted.items():
            is_refused = key in Settings.model_fields and key not in CHANGEABLE_BY_FLEET
            reason = (
                "only the device itself may change this" if is_refused else settings._objection(key, value)
            )
            if reason:
                refusals.append(SettingRefusal(key=key[:64], reason=reason[:300]))
            else:
                settings = Settings.model_validate({**settings.model_dump(), key: value})
        return settings, tuple(refusals)

    def objections(self, wanted: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """Keys of `wanted` that no device would take into its configuration, each with the reason."""
        found = ((key, self._objection(key, value)) for key, value in wanted.items())
        return tuple((key, reason) for key, reason in found if reason)

    def for_fleet(self) -> dict[str, Any]:
        """The settings in force that the fleet may change."""
        return {key: value for key, value in self.model_dump().items() if key in CHANGEABLE_BY_FLEET}

    def _objection(self, key: str, value: object) -> str:
        if key not in Settings.model_fields:
            return unknown_key(key, Settings.model_fields)
        try:
            Settings.model_validate({**self.model_dump(), key: value})
        except ValidationError as error:
            return f"{value!r:.60}: {error.errors(include_url=False, include_input=False)[0]['msg']}"
        return ""
