"""CAs get new certificates and new keys under a running broker; who is there stays, who comes gets in."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from broker_config.private_broker import PrivateBroker
from broker_config.running_broker import RunningBroker
from protocol.errors import LinkError, ProvisioningError
from protocol.link import Connected, Published, TlsFiles
from protocol.topics import DEVICE_STATUS
from provisioning.authority import AuthorityKind
from provisioning.ca_renewal import authority_states, renew_certificate, renew_key, retire
from provisioning.registry import DeviceRecord
from provisioning.upkeep import is_due
from tests.live_fleet import LiveFleet, Recorder, make_fleet

KINDS: tuple[AuthorityKind, ...] = ("device", "backend", "claim", "server")


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveFleet]:
    directory = make_fleet(tmp_path / "fleet", "f", ("verifier.v1",))
    live = LiveFleet(tmp_path, directory=directory)
    live.broker = PrivateBroker(directory.broker_files(), directory.path / "broker")
    with live:
        yield live


def reload(live: LiveFleet) -> None:
    running = RunningBroker.find(live.directory.path / "broker")
    assert running is not None
    running.reload(live.directory.broker_files())


def publishes(live: LiveFleet, name: str) -> None:
    """The device gets in with the certificate that it has, and writes."""
    recorder = Recorder()
    with live.link(name, recorder) as link:
        token = link.publish(DEVICE_STATUS.topic("f", d=name), b"x")
        recorder.next(Published, lambda event: event.token == token)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_certificate_of_the_same_key_changes_nothing_for_anybody(
    live: LiveFleet, kind: AuthorityKind
) -> None:
    before = live.directory.authority(kind).certificate
    recorder = Recorder()
    with live.link("dev-a", recorder) as link, live.link("verifier.v1", Recorder()) as verifier:
        renew_certificate(live.directory, kind)
        reload(live)
        publishes(live, "dev-b")
        assert (link.traffic.n_connects, verifier.traffic.n_connects) == (1, 1)
    publishes(live, "dev-a")
    after = live.directory.authority(kind).certificate
    assert after.serial_number != before.serial_number
    assert after.public_key() == before.public_key()
    assert after.not_valid_after_utc >= before.not_valid_after_utc


def test_devices_of_both_keys_get_in_while_they_overlap(live: LiveFleet) -> None:
    recorder = Recorder()
    publishes(live, "old-away")
    with live.link("old-there", recorder) as link:
        recorder.next(Connected)
        renew_key(live.directory, "device")
        assert len(_certificates(live.directory.broker_files().device_ca)) == 2
        reload(live)
        publishes(live, "new")
        publishes(live, "old-away")
        assert link.traffic.n_connects == 1
    issuers = {_issuer(live.tls(name)) for name in ("old-away", "new")}
    assert len(issuers) == 2


def test_a_device_revoked_under_the_old_key_stays_out_under_the_new_one(live: LiveFleet) -> None:
    directory = live.directory
    certificate = x509.load_pem_x509_certificate(live.tls("bad").cert_file.read_bytes())
    directory.registry.add_device("bad", "m", certificate)
    publishes(live, "bad")
    directory.registry.revoke_device("bad")
    directory.write_revocation_list("device")
    renew_key(directory, "device")
    reload(live)
    publishes(live, "good")
    with pytest.raises(LinkError, match="revoked"), live.link("bad", Recorder()):
        pass
    directory.write_revocation_list("device")
    reload(live)
    with pytest.raises(LinkError, match="revoked"), live.link("bad", Recorder()):
        pass


def test_the_brokers_ca_gets_a_new_key_and_devices_follow_by_the_root(live: LiveFleet) -> None:
    publishes(live, "dev-a")
    before = live.directory.authority("server").certificate
    with live.link("dev-b", Recorder()) as link:
        renew_key(live.directory, "server")
        reload(live)
        publishes(live, "dev-a")
        assert link.traffic.n_connects == 1
    publishes(live, "dev-b")
    after = live.directory.authority("server").certificate
    assert after.public_key() != before.public_key()
    assert [each.subject for each in _certificates(live.directory.broker_files().server_cert)][
        1
    ] == after.subject


def test_backends_change_to_the_new_key_and_the_old_one_goes(live: LiveFleet) -> None:
    recorder = Recorder()
    with live.link("verifier.v1", recorder) as link:
        renew_key(live.directory, "backend")
        reload(live)
        assert live.directory.backends_of_earlier_keys() == ()
        with live.link("fleet.ops", Recorder()):
            pass
        assert link.traffic.n_connects == 1
    assert retire(live.directory, "backend") == 1
    reload(live)
    with live.link("verifier.v1", Recorder()):
        pass


def test_the_old_key_goes_only_when_nobody_depends_on_it(live: LiveFleet) -> None:
    directory = live.directory
    certificate = x509.load_pem_x509_certificate(live.tls("pi-1").cert_file.read_bytes())
    directory.registry.add_device("pi-1", "m", certificate)
    time.sleep(1.1)  # the registry counts seconds
    renew_key(directory, "device")
    [state] = [each for each in authority_states(directory) if each.kind == "device"]
    assert (state.n_previous, state.depending) == (1, ("pi-1",))
    with pytest.raises(ProvisioningError, match="signed by an earlier key: pi-1"):
        retire(directory, "device")
    [record] = directory.registry.devices()
    assert _is_due(record, state.since)
    time.sleep(1.1)
    again = directory.authority("device").issue("pi-1")
    directory.registry.add_device("pi-1", "m", again.certificate, replace=True)
    [record] = directory.registry.devices()
    assert not _is_due(record, state.since)
    assert retire(directory, "device") == 1
    assert len(_certificates(directory.broker_files().device_ca)) == 1


def test_after_the_next_start_the_broker_knows_the_new_key_alone(tmp_path: Path) -> None:
    directory = make_fleet(tmp_path / "fleet", "f", ("verifier.v1",))
    live = LiveFleet(tmp_path, directory=directory)
    old = live.tls("old")
    renew_key(directory, "device")
    retire(directory, "device", force=True)
    with live:
        publishes(live, "new")
        with pytest.raises(LinkError) as refused, live.link("old", Recorder()):
            pass
        assert not refused.value.is_retryable
    assert old.cert_file.exists()


def _is_due(record: DeviceRecord, since: dt.datetime | None) -> bool:
    return is_due(record, dt.datetime.now(dt.UTC), since)


def _certificates(file: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(file.read_bytes())


def _issuer(tls: TlsFiles) -> str:
    return x509.load_pem_x509_certificate(tls.cert_file.read_bytes()).issuer.rfc4514_string()
