"""Settings of a verifier: TOML file, then environment `SLED_VERIFIER_*`, then what the user typed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_verifier.admission import AdmissionLimits
from edge_verifier.checkpoints import CheckpointRule
from edge_verifier.flood import FloodLimits
from edge_verifier.policies import POLICIES, Deadline, Policy, PolicyName, Static
from edge_verifier.prefixes import PrefixRules, PrefixScope
from edge_verifier.quota import Quota
from edge_verifier.shown_text import DisplayRates
from edge_verifier.step_rows import PlannerLimits
from edge_verifier.table_rules import TableRules
from protocol.errors import ConfigError
from protocol.unknown_key import nearest_key

ENVIRONMENT_PREFIX = "SLED_VERIFIER_"
"""`SLED_VERIFIER_POLICY=greedy` sets `policy`."""


_LOGIT_BYTES = 4


class VerifierConfig(BaseModel):
    """All settings of the service that are not the engine's; defaults serve from a board to a GPU.

    Attributes:
        policy: when a batch starts.
        batch_size: sessions that start a batch under the policy `static`.
        max_hold_s: longest time that a window waits for others while the engine is idle.
        hold_fixed: the same in fixed parts of a step (its time without its rows).
        max_sessions: below the engine's own limit; None for no other.
        min_idle_s: a session silent for less is never dropped for another's room.
        max_backlog_s: engine time of waiting prompts beyond which new sessions are told to come later.
        max_late_s: new sessions are told to come later while half of those that wait for a step have had
            nothing to show for longer than this; None for never.
        min_step_tokens, max_step_tokens: bounds of the learned token budget of a step.
        max_logits_mib: memory that a step's logits may take, in fp32; it is not part of the KV budget.
        display_rate_tokens_s: how fast users read whose devices do not say; sets whose window is most urgent.
            What a device states beyond it counts only while nobody is late for it.
        max_display_rate_tokens_s: rates that devices state are taken for at most this.
        keep_checkpoints: False keeps every conversation out of the broker.
        share_prefixes: whose prompts that begin alike are computed once: those of the whole fleet, of each
            device by itself, or of none (`off`).
        messages_s, bytes_s: per device; more is refused.
        quota_sessions, quota_tokens_minute, quota_tokens_day, quota_bytes_day: per device, where the fleet
            has not decided otherwise; None is no limit.
        flood_refused_s: refused payloads per second of one device that, going on, make the fleet lock it out.
        flood_burst: refused payloads beyond that rate which are forgiven.
        keepalive_s: a dead verifier is noticed after at most 1.5 times this.
        advert_s: least time between adverts that change nothing but the price.
        step_log_level: of the line per step.
        summary_s: time between summary lines at level info.
        metrics_port: Prometheus endpoint; None for none, 0 for any free port.
        drain_s: how long a stop waits for the turns under way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    policy: PolicyName = "deadline"
    batch_size: int = Field(default=8, ge=1, le=4096)
    max_hold_s: float = Field(default=0.25, ge=0.0, le=10.0)
    hold_fixed: float = Field(default=0.5, ge=0.0, le=10.0)
    max_sessions: int | None = Field(default=None, ge=1)
    min_idle_s: float = Field(default=2.0, ge=0.0)
    max_backlog_s: float = Field(default=10.0, gt=0.0)
    max_late_s: float | None = Field(default=None, gt=0.0)
    min_step_tokens: int = Field(default=64, ge=34)
    max_step_tokens: int = Field(default=4096, ge=64)
    max_logits_mib: int = Field(default=512, ge=1)
    display_rate_tokens_s: float = Field(default=10.0, gt=0.0)
    max_display_rate_tokens_s: float = Field(default=30.0, gt=0.0)
    keep_checkpoints: bool = True
    share_prefixes: PrefixScope = "fleet"
    messages_s: float = Field(default=500.0, gt=0.0)
    bytes_s: float = Field(default=1_048_576.0, gt=0.0)
    quota_sessions: int | None = Field(default=8, ge=0)
    quota_tokens_minute: int | None = Field(default=None, ge=0)
    quota_tokens_day: int | None = Field(default=None, ge=0)
    quota_bytes_day: int | None = Field(default=None, ge=0)
    flood_refused_s: float = Field(default=500.0, gt=0.0)
    flood_burst: float = Field(default=3500.0, gt=0.0)
    keepalive_s: int = Field(default=5, ge=1, le=5)
    advert_s: float = Field(default=30.0, gt=0.0)
    step_log_level: Literal["debug", "info"] = "debug"
    summary_s: float = Field(default=60.0, gt=0.0)
    metrics_port: int | None = Field(default=None, ge=0, le=65_535)
    metrics_address: str = "127.0.0.1"
    drain_s: float = Field(default=5.0, ge=0.0)

    @classmethod
    def load(
        cls,
        file: Path | None = None,
        environment: Mapping[str, str] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> Self:
        """Merge the sources, later ones winning; flags that are None were not typed.

        Args:
            file: TOML; its table `verifier`, or the top level when it has none.
            environment: such as `os.environ`.
            flags: by setting name.

        Raises:
            ConfigError: a file that cannot be read, an unknown key (the nearest is named), a bad value.
        """
        layers = [
            ("file " + str(file), _from_file(file)),
            ("environment", _from_environment(environment or {})),
            (
                "command line",
                {name: value for name, value in (flags or {}).items() if value is not None},
            ),
        ]
        merged: dict[str, Any] = {}
        for source, values in layers:
            _check_names(source, values, cls.model_fields)
            merged |= values
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"verifier setting {name} = {first['input']!r}: {first['msg']}",
                hint="correct it in the file, the environment or the command line",
            ) from error

    def policy_object(self) -> Policy:
        """The policy with its settings."""
        if self.policy == "deadline":
            return Deadline(self.hold_fixed, self.max_hold_s)
        if self.policy == "static":
            return Static(self.batch_size, self.max_hold_s)
        return POLICIES[self.policy]()

    def table_rules(self) -> TableRules:
        """What the session table needs of the settings."""
        return TableRules(
            max_sessions=self.max_sessions,
            min_idle_s=self.min_idle_s,
            max_backlog_s=self.max_backlog_s,
            max_late_s=self.max_late_s,
            display_rates=DisplayRates(self.display_rate_tokens_s, self.max_display_rate_tokens_s),
            prefixes=PrefixRules(self.share_prefixes),
            checkpoints=CheckpointRule(is_on=self.keep_checkpoints),
        )

    def planner_limits(self, vocab_size: int) -> PlannerLimits:
        """What the planner needs of the settings, for a target of so many logits a position."""
        return PlannerLimits(
            min_tokens=self.min_step_tokens,
            max_tokens=self.max_step_tokens,
            max_window_tokens=(self.max_logits_mib << 20) // (_LOGIT_BYTES * vocab_size),
        )

    def admission_limits(self) -> AdmissionLimits:
        """What the gate needs of the settings; bursts are half a second of messages, two of bytes."""
        return AdmissionLimits(
            messages_s=self.messages_s,
            messages_burst=max(1.0, self.messages_s / 2),
            bytes_s=self.bytes_s,
            bytes_burst=max(65_536.0, 2 * self.bytes_s),
            flood=FloodLimits(self.flood_refused_s, self.flood_burst),
        )

    def default_quota(self) -> Quota:
        """What a device may use when the fleet has not decided otherwise."""
        return Quota(
            self.quota_sessions, self.quota_tokens_minute, self.quota_tokens_day, self.quota_bytes_day
        )


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"settings file {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {file} is not TOML: {error}") from error
    table = values.get("verifier", values)
    if not isinstance(table, dict):
        raise ConfigError(f"settings file {file}: verifier is not a table", hint="write [verifier]")
    return table


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }


def _check_names(source: str, values: Mapping[str, Any], known: Mapping[str, object]) -> None:
    for name in values:
        if name not in known:
            raise ConfigError(
                f"{source}: unknown verifier setting {name!r:.80}", hint=nearest_key(name, known)
            )
