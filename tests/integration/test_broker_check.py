"""`sled broker check` against a good broker and against ones with one thing wrong each."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_config import check_rules, private_broker
from broker_config.check import Finding
from broker_config.check_tls import check_revocation_list
from cli.broker_address import BrokerAddress
from cli.broker_probe import probe
from protocol.errors import LinkError
from protocol.link import Published
from protocol.topics import DESIRED
from provisioning.authority import Authority
from tests.e2e.sled import sled
from tests.live_fleet import LiveFleet, Recorder


@pytest.fixture(autouse=True)
def _near_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker on this machine says at once what it has to say."""
    monkeypatch.setattr(check_rules, "QUIET_S", 0.1)


def address(live: LiveFleet) -> BrokerAddress:
    return BrokerAddress("localhost", live.broker.device_port, live.broker.backend_port)


def faults(live: LiveFleet) -> dict[str, str]:
    """What is wrong, by check."""
    return {each.check: each.text for each in probe(live.directory, address(live)) if each.state == "fault"}


def test_the_generated_broker_has_no_fault(live_fleet: LiveFleet) -> None:
    victim = Recorder()
    with live_fleet.link("dev-a", victim) as running:
        findings = probe(live_fleet.directory, address(live_fleet))
        assert running.traffic.n_connects == 1
    assert [each for each in findings if each.state == "fault"] == []
    assert {each.check for each in findings} >= {
        "tls devices",
        "tls backend",
        "listeners",
        "access",
        "client id",
        "delay",
        "queue limit",
        "version",
        "revocation",
    }
    assert all(each.hint for each in findings if each.state == "fault")


Sabotage = Callable[[pytest.MonkeyPatch], None]


def _setting(old: str, new: str) -> Sabotage:
    """A mosquitto.conf with one line changed."""
    render = private_broker.render_configuration

    def changed(*arguments: object) -> str:
        text = render(*arguments)  # type: ignore[arg-type]  # passed through
        assert old in text
        return text.replace(old, new)

    return lambda patch: patch.setattr(private_broker, "render_configuration", changed)


def _rule(line: str) -> Sabotage:
    """An access list with one line more."""
    render = private_broker.render_acl_of
    return lambda patch: patch.setattr(
        private_broker, "render_acl_of", lambda files: f"{render(files)}\n{line}\n"
    )


@pytest.mark.parametrize(
    ("sabotage", "check", "text"),
    [
        (_setting("set_tcp_nodelay true", "set_tcp_nodelay false"), "delay", "collects small packets"),
        (_setting("use_username_as_clientid true", ""), "client id", "ended another's connection"),
        (_setting("max_queued_messages 20000", "max_queued_messages 10"), "queue limit", "of 30"),
        (_rule("pattern write sled/1/f/device/+/status"), "access", "may write another device's status"),
        (_rule("pattern read sled/1/f/device/+/desired"), "access", "gets another's wishes"),
        (_rule("pattern write sled/1/f/verifier/+/status"), "access", "a verifier's advert"),
    ],
)
def test_one_thing_wrong_is_found_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sabotage: Sabotage, check: str, text: str
) -> None:
    sabotage(monkeypatch)
    with LiveFleet(tmp_path) as live:
        if check == "queue limit":
            _retain(live, 300)
        found = faults(live)
    assert check in found
    assert found.keys() == {check}
    assert text in found[check]


def test_a_broker_that_lets_strangers_in_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It then knows nobody by name, which the other checks find, too."""
    _setting("require_certificate true", "require_certificate false")(monkeypatch)
    with LiveFleet(tmp_path) as live:
        assert "without a certificate is let in" in faults(live)["tls devices"]


def _retain(live: LiveFleet, count: int) -> None:
    recorder = Recorder()
    with live.link("fleet.ops", recorder) as link:
        tokens = {
            link.publish(DESIRED.topic("f", d=f"dev-{number}"), b"{}", is_retained=True)
            for number in range(count)
        }
        while tokens:
            tokens.discard(recorder.next(Published).token)


def test_a_broker_with_one_authority_for_all_is_found(tmp_path: Path) -> None:
    """Then every device opens the backend listener."""
    with LiveFleet(tmp_path) as live:
        ca = live.directory.path / "ca"
        both = (ca / "backend" / "cert.pem").read_bytes() + (ca / "device" / "cert.pem").read_bytes()
        lists = (ca / "backend" / "crl.pem").read_bytes() + (ca / "device" / "crl.pem").read_bytes()
        original = (ca / "backend" / "cert.pem").read_bytes(), (ca / "backend" / "crl.pem").read_bytes()
        (ca / "backend" / "cert.pem").write_bytes(both)
        (ca / "backend" / "crl.pem").write_bytes(lists)
        live.broker.restart()
        for name, content in zip(("cert.pem", "crl.pem"), original, strict=True):
            (ca / "backend" / name).write_bytes(content)
        assert "lets the other kind of identity in" in faults(live)["listeners"]


def test_a_broker_out_of_reach_is_said(tmp_path: Path, live_fleet: LiveFleet) -> None:
    directory = str(live_fleet.directory.path)
    done = sled(tmp_path, "broker", "check", "localhost", "--port", "1", "--fleet", directory)
    assert done.exit_code == 3
    with pytest.raises(LinkError, match="nothing listens"):
        probe(live_fleet.directory, BrokerAddress("localhost", 1, 1))


def test_the_command_prints_json_and_its_exit_code_says_whether_all_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _setting("set_tcp_nodelay true", "set_tcp_nodelay false")(monkeypatch)
    with LiveFleet(tmp_path) as live:
        address(live).store(live.directory.path)
        done = sled(tmp_path, "broker", "check", "--fleet", str(live.directory.path), "--json")
        shown = sled(tmp_path, "broker", "check", "--fleet", str(live.directory.path))
    assert done.exit_code == shown.exit_code == 1
    [found] = done.objects()
    assert [each["check"] for each in found if each["state"] == "fault"] == ["delay"]
    assert "set_tcp_nodelay true" in shown.stdout


@pytest.mark.parametrize(("days", "state"), [(0, "ok"), (3640, "warning"), (3651, "fault")])
def test_a_revocation_list_is_judged_by_its_next_update(tmp_path: Path, days: int, state: str) -> None:
    authority = Authority.create("device", tmp_path / "device", "f")
    now = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    finding = check_revocation_list("device list", authority.revocation_list_file.read_bytes(), now)
    assert isinstance(finding, Finding)
    assert finding.state == state
