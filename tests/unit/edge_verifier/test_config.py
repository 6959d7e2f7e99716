"""Settings: which source wins, and what is said about a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_verifier.config import VerifierConfig
from edge_verifier.policies import Deadline, Greedy, Static
from edge_verifier.shown_text import DisplayRates
from protocol.errors import ConfigError


def test_file_then_environment_then_flags(tmp_path: Path) -> None:
    file = tmp_path / "verifier.toml"
    file.write_text("[verifier]\nmax_sessions = 1\nbatch_size = 2\nkeepalive_s = 3\n")
    environment = {"SLED_VERIFIER_MAX_SESSIONS": "10", "SLED_VERIFIER_BATCH_SIZE": "20", "OTHER": "1"}
    config = VerifierConfig.load(file, environment, {"max_sessions": 100, "drain_s": None})
    assert (config.max_sessions, config.batch_size, config.keepalive_s) == (100, 20, 3)
    assert config.drain_s == VerifierConfig().drain_s


def test_how_fast_users_read_and_what_devices_may_say() -> None:
    flags = {"display_rate_tokens_s": 8.0, "max_display_rate_tokens_s": 20.0}
    rates = VerifierConfig.load(flags=flags).table_rules().display_rates
    assert [rates.own_tokens_s(stated) for stated in (None, 4.0, 500.0)] == [8.0, 4.0, 20.0]
    assert VerifierConfig().table_rules().display_rates == DisplayRates()


def test_a_file_may_do_without_the_table(tmp_path: Path) -> None:
    file = tmp_path / "verifier.toml"
    file.write_text('policy = "greedy"\nkeep_checkpoints = false\n')
    config = VerifierConfig.load(file)
    assert isinstance(config.policy_object(), Greedy)
    assert not config.table_rules().checkpoints.is_on


@pytest.mark.parametrize(
    ("environment", "flags", "source"),
    [({"SLED_VERIFIER_POLCY": "greedy"}, None, "environment"), (None, {"polcy": "greedy"}, "command line")],
)
def test_an_unknown_setting_is_refused_with_the_nearest_named(
    environment: dict[str, str] | None, flags: dict[str, str] | None, source: str
) -> None:
    with pytest.raises(ConfigError, match=f"{source}: unknown verifier setting 'polcy'") as caught:
        VerifierConfig.load(None, environment, flags)
    assert caught.value.hint == "did you mean 'policy'?"


@pytest.mark.parametrize(
    ("name", "value"),
    [("policy", "random"), ("keepalive_s", 60), ("metrics_port", 70_000), ("max_hold_s", "soon")],
)
def test_a_bad_value_is_refused_with_its_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"verifier setting {name} = "):
        VerifierConfig.load(flags={name: value})


@pytest.mark.parametrize("text", ["policy = ", "[[verifier]]\nx = 1\n", "verifier = 3\n"])
def test_a_file_that_is_not_settings_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "verifier.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"verifier\.toml"):
        VerifierConfig.load(file)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        VerifierConfig.load(tmp_path / "nowhere.toml")


def test_policies_get_their_settings() -> None:
    assert VerifierConfig(policy="static", batch_size=3).policy_object() == Static(3, 0.25)
    assert VerifierConfig(hold_fixed=2.0, max_hold_s=0.5).policy_object() == Deadline(2.0, 0.5)
