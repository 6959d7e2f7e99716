"""The generated mosquitto.conf."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from broker_config.configuration import BrokerFiles, BrokerPlace, BrokerPorts, render_configuration
from broker_config.directive import Directive
from broker_config.production import export, production_files, render_production
from protocol.errors import BrokerError
from protocol.messages import MAX_PAYLOAD_BYTES

ROOT = Path(__file__).parents[3]


def _settings(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def _listeners(text: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for name, value in _settings(text):
        if name == "listener":
            found.append({})
        if found:
            found[-1][name] = value
    return found


def test_the_file_in_the_repository_is_what_the_generator_writes() -> None:
    assert (ROOT / "mosquitto.conf").read_text(encoding="utf-8") == render_production()


def test_nobody_gets_in_without_a_certificate_that_a_revocation_list_covers() -> None:
    listeners = _listeners(render_production())
    assert len(listeners) == 4
    for listener in listeners:
        assert listener["require_certificate"] == "true"
        assert listener["use_identity_as_username"] == "true"
        assert listener["tls_version"] == "tlsv1.2"
        assert listener["crlfile"].endswith("-crl.pem")


def test_the_client_id_is_free_on_this_machine_only() -> None:
    free = [each for each in _listeners(render_production()) if "use_username_as_clientid" not in each]
    assert [each["listener"] for each in free] == ["8886 127.0.0.1"]


def test_each_kind_of_identity_has_its_own_authority_and_only_claims_are_mounted() -> None:
    devices, backend, claims, admin = _listeners(render_production())
    assert len({each["cafile"] for each in (devices, backend, claims)}) == 3
    assert admin["cafile"] == backend["cafile"]
    assert [each.get("mount_point") for each in (devices, backend, claims, admin)] == [
        None,
        None,
        "claim/",
        None,
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("per_listener_settings", "false"),
        ("allow_anonymous", "false"),
        ("check_retain_source", "false"),
        ("set_tcp_nodelay", "true"),
        ("max_packet_size", "65536"),
    ],
)
def test_settings_that_the_protocol_depends_on(name: str, value: str) -> None:
    assert [found for key, found in _settings(render_production()) if key == name] == [value]


def test_the_longest_payload_fits_into_a_packet_with_the_longest_topic() -> None:
    longest_topic = len("sled/1//verifier//device//session/0/window") + 3 * 48
    assert MAX_PAYLOAD_BYTES + longest_topic + 32 < 65_536


def test_paths_with_spaces_are_kept_and_line_breaks_refused() -> None:
    place = BrokerPlace(acl_file=Path("/a b/acl"), persistence=Path("/a b"), log="stderr")
    text = render_configuration(production_files("f", ()), BrokerPorts(), place, "t")
    assert ("acl_file", "/a b/acl") in _settings(text)
    with pytest.raises(BrokerError, match="line break"):
        Directive("acl_file", Path("/a\nallow_anonymous true")).render()


def test_an_export_holds_every_file_that_the_profile_names(tmp_path: Path) -> None:
    names = ("server_cert", "server_key", "device_ca", "device_crl", "backend_ca", "backend_crl")
    sources = {name: tmp_path / name for name in (*names, "claim_ca", "claim_crl")}
    for name, source in sources.items():
        source.write_text(name)
    sources["server_key"].chmod(0o600)
    export(BrokerFiles("f", backend_identities=("fleet.ops",), **sources), tmp_path / "out")
    settings = _settings((tmp_path / "out" / "mosquitto.conf").read_text())
    named = [
        value for key, value in settings if key in ("acl_file", "cafile", "certfile", "keyfile", "crlfile")
    ]
    for path in named:
        assert (tmp_path / "out" / Path(path).relative_to("/etc/mosquitto")).is_file()
    assert stat.S_IMODE((tmp_path / "out" / "certs" / "sled-broker.key").stat().st_mode) == 0o600
    assert "user fleet.ops" in (tmp_path / "out" / "sled.acl").read_text()
