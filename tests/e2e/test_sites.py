"""Sites on the command line: from a device to the files that are carried to the site."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from tests.e2e.sled import Done, sled
from tests.tiny_draft import write_vocabulary


class Operator:
    """Runs commands on one fleet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fleet = path / "fleet"

    def __call__(self, *arguments: str, expect: int = 0) -> Done:
        done = sled(self.path, *arguments, "--fleet", str(self.fleet))
        assert done.exit_code == expect, done.stderr
        return done


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    run = Operator(tmp_path)
    assert sled(tmp_path, "fleet", "init", str(run.fleet), "--host", "centre.lan").exit_code == 0
    model = str(write_vocabulary(tmp_path / "draft.gguf"))
    out = str(tmp_path / "pi-1.sled")
    run("provision", "device", "pi-1", "--model", model, "--out", out, "--broker", "plant.lan")
    return run


def test_a_site_gets_its_files_and_the_centre_its_rules(operator: Operator, tmp_path: Path) -> None:
    [made] = operator(
        "broker", "site", "set", "plant", "--host", "plant.lan", "--add", "pi-1", "--json"
    ).objects()
    assert made == {
        "site": "plant",
        "hosts": ["plant.lan"],
        "centre": "centre.lan:8884",
        "devices": ["pi-1"],
    }
    operator("broker", "files", str(tmp_path / "site"), "--site", "plant")
    operator("broker", "files", str(tmp_path / "centre"))
    conf = (tmp_path / "site" / "mosquitto.conf").read_text()
    assert "address centre.lan:8884\n" in conf
    assert "remote_clientid bridge.plant\n" in conf
    assert "mount_point" not in conf
    assert str(tmp_path) not in conf
    assert "\nconnection " not in (tmp_path / "centre" / "mosquitto.conf").read_text()
    assert "user bridge.plant\n" in (tmp_path / "centre" / "sled.acl").read_text()
    assert "bridge.plant" not in (tmp_path / "site" / "sled.acl").read_text()
    assert _names(tmp_path / "site" / "certs" / "sled-broker.pem") == {"localhost", "plant.lan"}
    for key in ("sled-broker.key", "sled-bridge.key"):
        assert (tmp_path / "site" / "certs" / key).stat().st_mode & 0o777 == 0o600

    operator("broker", "site", "set", "plant", "--remove", "pi-1", "--centre", "10.0.0.1:9884")
    [[site]] = operator("broker", "site", "ls", "--json").objects()
    assert (site["devices"], site["centre"], site["hosts"]) == ([], "10.0.0.1:9884", ["plant.lan"])
    operator("broker", "files", str(tmp_path / "centre"))
    assert "pi-1" not in (tmp_path / "centre" / "sled.acl").read_text()


def test_a_removed_site_leaves_nothing_and_its_name_can_be_used_again(
    operator: Operator, tmp_path: Path
) -> None:
    operator("broker", "site", "set", "plant", "--host", "plant.lan", "--add", "pi-1")
    operator("broker", "files", str(tmp_path / "site"), "--site", "plant")
    bridge = tmp_path / "site" / "certs" / "sled-bridge.pem"
    old = x509.load_pem_x509_certificate(bridge.read_bytes())
    removed = operator("broker", "site", "rm", "plant", "--json")
    assert removed.objects()[0]["devices"] == ["pi-1"]
    assert "sled broker files" in removed.stderr
    assert operator("broker", "site", "ls", "--json").objects() == [[]]
    assert not (operator.fleet / "sites" / "plant").exists()
    operator("broker", "files", str(tmp_path / "centre"))
    assert "bridge.plant" not in (tmp_path / "centre" / "sled.acl").read_text()
    [revoked] = (tmp_path / "centre" / "ca_certificates").glob("*backend*crl*")
    revocations = x509.load_pem_x509_crl(revoked.read_bytes())
    assert revocations.get_revoked_certificate_by_serial_number(old.serial_number) is not None
    [records] = operator("fleet", "audit", "--json").objects()
    assert ("remove-site", "plant") in {(each["action"], each["subject"]) for each in records}
    assert "no site 'plant'" in operator("broker", "site", "rm", "plant", expect=6).stderr
    operator("broker", "site", "set", "plant", "--host", "plant.lan", "--add", "pi-1")
    operator("broker", "files", str(tmp_path / "again"), "--site", "plant")
    new = x509.load_pem_x509_certificate((tmp_path / "again" / "certs" / "sled-bridge.pem").read_bytes())
    assert revocations.get_revoked_certificate_by_serial_number(new.serial_number) is None


def test_what_cannot_be_is_refused(operator: Operator, tmp_path: Path) -> None:
    operator("broker", "site", "set", "plant", "--host", "plant.lan", "--add", "pi-1")
    taken = operator("broker", "site", "set", "other", "--host", "o.lan", "--add", "pi-1", expect=6)
    assert "device pi-1 is of site plant" in taken.stderr
    unknown = operator("broker", "site", "set", "plant", "--add", "pi-9", expect=6)
    assert "no device 'pi-9'" in unknown.stderr
    assert operator("broker", "site", "set", "Plant 2", "--host", "x", expect=2).stdout == ""
    assert "--host" in operator("broker", "site", "set", "hostless", expect=2).stderr
    nowhere = operator("broker", "files", str(tmp_path / "x"), "--site", "moon", expect=6)
    assert "it has plant" in nowhere.stderr
    assert not (tmp_path / "x").exists()


def test_the_files_follow_the_cas_to_their_new_keys(operator: Operator, tmp_path: Path) -> None:
    operator("broker", "site", "set", "plant", "--host", "plant.lan", "--add", "pi-1")
    operator("broker", "files", str(tmp_path / "one"), "--site", "plant")
    operator("broker", "files", str(tmp_path / "two"), "--site", "plant")
    bridge = Path("certs") / "sled-bridge.pem"
    assert (tmp_path / "one" / bridge).read_bytes() == (tmp_path / "two" / bridge).read_bytes()
    operator("fleet", "ca", "renew", "backend", "--new-key")
    assert "bridge.plant" in operator("fleet", "ca", "retire", "backend", expect=6).stderr
    operator("broker", "files", str(tmp_path / "three"), "--site", "plant")
    assert (tmp_path / "one" / bridge).read_bytes() != (tmp_path / "three" / bridge).read_bytes()
    operator("fleet", "ca", "retire", "backend")


def _names(file: Path) -> set[str]:
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(names.get_values_for_type(x509.DNSName))
