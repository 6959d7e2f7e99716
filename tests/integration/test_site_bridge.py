"""A site with a broker of its own, bridged to the centre: two real brokers and a cable between them."""

from __future__ import annotations

import dataclasses
import re
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from cryptography import x509

from broker_config.acl import render_acl
from broker_config.running_broker import RunningBroker
from protocol.link import Published, Received, Subscription, Will
from protocol.topics import DESIRED, DEVICE_STATUS, STATE, VERDICT, VERIFIER_STATUS, WINDOW
from provisioning.revocation import BrokerAccess, kick_bridge
from provisioning.site_book import SiteBook
from tests.e2e.sled import wait_until
from tests.integration.live_chat import serving
from tests.integration.test_faults import OPTIONS, device, finish, paced_engine
from tests.live_fleet import WAIT_S, LiveFleet, Recorder
from tests.site_broker import SiteBroker
from tests.tcp_proxy import TcpProxy

PLANT, OTHER, NOWHERE = "dev-a", "dev-b", "dev-c"
QUIET_S = 1.0


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[LiveFleet]:
    with LiveFleet(tmp_path / "centre", backends=("verifier.v1",)) as fleet:
        for name in (PLANT, OTHER, NOWHERE):
            certificate = x509.load_pem_x509_certificate(fleet.tls(name).cert_file.read_bytes())
            fleet.directory.registry.add_device(name, "m", certificate)
        yield fleet


@pytest.fixture
def cable(centre: LiveFleet) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", centre.broker.backend_port) as proxy:
        yield proxy


@pytest.fixture
def plant(centre: LiveFleet, cable: TcpProxy, tmp_path: Path) -> Iterator[SiteBroker]:
    with SiteBroker(centre, tmp_path, "plant", cable.port, (PLANT,)) as site:
        site.wait_bridged()
        yield site


def topic(channel: object, device: str) -> str:
    return channel.topic("f", v="v1", d=device, n=0)  # type: ignore[attr-defined, no-any-return]  # of a session


def test_a_session_on_the_site_says_what_the_target_says_and_survives_a_cut(
    centre: LiveFleet, cable: TcpProxy, plant: SiteBroker, tmp_path: Path
) -> None:
    with (
        serving(centre, paced_engine()),
        device(plant.fleet, tmp_path / "home") as agent,
        agent.chat(OPTIONS) as chat,
    ):
        finish(chat.send("hold on"))
        events = chat.send("go on")
        begun = list(islice(events, 3))
        cable.cut()
        time.sleep(0.5)
        cable.mend()
        finish(events, begun)
    assert centre.broker.log.count("as bridge.plant ") == 2


def test_a_site_reaches_its_own_devices_only(
    centre: LiveFleet, plant: SiteBroker, cable: TcpProxy, tmp_path: Path
) -> None:
    """Every device of the fleet gets into the site's broker; the centre takes and gives for its own alone."""
    verifier = Recorder()
    with (
        SiteBroker(centre, tmp_path, "other", cable.port, (OTHER,)) as other,
        centre.link("verifier.v1", verifier) as link,
        centre.link("fleet.ops", Recorder()) as operator,
    ):
        other.wait_bridged()
        link.subscribe([Subscription(WINDOW.filter("f", v="v1"))])
        link.wait_subscribed(WAIT_S)
        for site in (plant, other):
            for name in (PLANT, OTHER, NOWHERE):
                recorder = Recorder()
                with site.fleet.link(name, recorder) as device:
                    device.subscribe([Subscription(topic(VERDICT, name)), Subscription(topic(DESIRED, name))])
                    device.wait_subscribed(WAIT_S)
                    device.publish(topic(WINDOW, name), f"{name} at {site.name}".encode())
                    link.publish(topic(VERDICT, name), b"verdict")
                    operator.publish(topic(DESIRED, name), b"wish")
                    time.sleep(QUIET_S)
                    got = {each.payload for each in recorder.waiting() if isinstance(each, Received)}
                is_own = (site.name, name) in {("plant", PLANT), ("other", OTHER)}
                assert got == ({b"verdict", b"wish"} if is_own else set()), (site.name, name)
        came = {each.payload for each in verifier.waiting() if isinstance(each, Received)}
        assert came == {b"dev-a at plant", b"dev-b at other"}


@pytest.mark.usefixtures("plant")
def test_the_bridge_of_a_removed_site_is_out_and_does_not_come_back(centre: LiveFleet) -> None:
    broker = centre.broker
    SiteBook(centre.directory).remove("plant")
    running = RunningBroker.find(broker.log_file.parent)
    assert running is not None
    n_refused, n_logins = broker.log.count("certificate verify failed"), broker.log.count("as bridge.plant ")
    admin = (broker.host, broker.admin_port)
    kick_bridge(
        centre.directory, "plant", BrokerAccess(broker.host, broker.device_port, admin, running.reload)
    )
    wait_until(lambda: broker.log.count("certificate verify failed") > n_refused, 60.0)
    assert broker.log.count("as bridge.plant ") == n_logins + 1  # the kick's own
    with centre.link("verifier.v1", Recorder()):
        pass


def test_the_stolen_identity_of_a_bridge_opens_nothing_else(centre: LiveFleet, plant: SiteBroker) -> None:
    """Its certificate at the centre directly: what the access list names, and not a topic more."""
    bridge = centre.directory.path / "sites" / "plant" / "bridge"
    tls = centre.tls("verifier.v1")
    stolen = type(tls)(tls.ca_file, bridge / "cert.pem", bridge / "key.pem")
    endpoint = type(centre.endpoint("verifier.v1"))("127.0.0.1", centre.broker.backend_port, stolen)
    recorder = Recorder()
    plant.__exit__(None, None, None)  # a broker lets one client of a name in
    with centre.link("bridge.plant", recorder, endpoint) as link, centre.link("fleet.ops", Recorder()) as ops:
        link.subscribe([Subscription("#")])
        link.wait_subscribed(WAIT_S)
        for name, expected in ((topic(WINDOW, PLANT), 0), (topic(DEVICE_STATUS, PLANT), 0)):
            assert _code(link, recorder, name) in (expected, 0x10)
        for name in (
            topic(WINDOW, OTHER),
            topic(VERDICT, PLANT),
            topic(STATE, PLANT),
            topic(DESIRED, PLANT),
            topic(DEVICE_STATUS, OTHER),
            VERIFIER_STATUS.topic("f", v="v1"),
            "sled/1/f/device/bridge.plant/status",
        ):
            assert _code(link, recorder, name) == 0x87, name
        ops.publish(topic(DESIRED, OTHER), b"secret")
        time.sleep(QUIET_S)
        seen = [each.topic for each in recorder.waiting() if isinstance(each, Received)]
        assert all(OTHER not in name for name in seen), seen


def test_what_the_centre_retains_comes_to_the_site_and_nothing_old_goes_back(
    centre: LiveFleet, cable: TcpProxy, plant: SiteBroker
) -> None:
    """During a cut the centre's checkpoint moves on; the site's older copy must not overwrite it."""
    recorder, place = Recorder(), topic(STATE, PLANT)
    with (
        centre.link("verifier.v1", Recorder()) as verifier,
        plant.fleet.link(PLANT, recorder) as device,
    ):
        device.subscribe([Subscription(place)])
        device.wait_subscribed(WAIT_S)
        verifier.publish(place, b"old", is_retained=True, expiry_s=500)
        first = recorder.next(Received, lambda each: each.topic == place)
        assert (first.payload, first.expires_in_s) == (b"old", 500)
        cable.cut()
        verifier.publish(place, b"new", is_retained=True, expiry_s=500)
        time.sleep(QUIET_S)
        cable.mend()
        plant.wait_bridged(2)
        assert recorder.next(Received, lambda each: each.topic == place, 20).payload == b"new"
    assert _retained(centre, PLANT, place) == b"new"
    assert _retained(plant.fleet, PLANT, place) == b"new"


def test_presence_follows_a_device_over_the_bridge_also_through_a_cut(
    centre: LiveFleet, cable: TcpProxy, plant: SiteBroker
) -> None:
    """Status and will are the device's own messages; the site's broker repeats them when it is back."""
    operator, place = Recorder(), topic(DEVICE_STATUS, PLANT)
    with centre.link("fleet.ops", operator) as link:
        link.subscribe([Subscription(place)])
        link.wait_subscribed(WAIT_S)
        with plant.fleet.link(PLANT, Recorder()) as device:
            device.publish(place, b"online", is_retained=True)
            assert operator.next(Received, lambda each: each.topic == place).payload == b"online"
            cable.cut()
            time.sleep(0.3)
            device.publish(place, b"offline", is_retained=True)
            time.sleep(QUIET_S)
        cable.mend()
        assert operator.next(Received, lambda each: each.payload == b"offline", 30).topic == place
    assert _retained(centre, "fleet.ops", place) == b"offline"


def test_the_will_of_a_device_that_vanishes_reaches_the_centre(centre: LiveFleet, plant: SiteBroker) -> None:
    operator, place = Recorder(), topic(DEVICE_STATUS, PLANT)
    endpoint = plant.fleet.endpoint(PLANT)
    with TcpProxy(endpoint.host, endpoint.port) as wire, centre.link("fleet.ops", operator) as link:
        link.subscribe([Subscription(place)])
        link.wait_subscribed(WAIT_S)
        through = dataclasses.replace(endpoint, port=wire.port)
        will = Will(place, b"lost")
        with plant.fleet.link(PLANT, Recorder(), through, will=will) as device:
            device.publish(place, b"online", is_retained=True)
            assert operator.next(Received, lambda each: each.topic == place).payload == b"online"
            wire.cut()
            assert operator.next(Received, lambda each: each.topic == place).payload == b"lost"
    assert _retained(centre, "fleet.ops", place) == b"lost"


def test_a_round_over_the_bridge_waits_for_nobodys_acknowledgement(
    centre: LiveFleet, plant: SiteBroker, cable: TcpProxy, tmp_path: Path
) -> None:
    """The bridge's socket collects small packets, which costs a round at QoS 1 some 40 ms.

    `pytest -rP` shows what was measured.
    """
    other = SiteBroker(centre, tmp_path, "other", cable.port, (OTHER,))
    conf = other.etc / "mosquitto.conf"
    lines = r"^(topic \S+/(?:window out|verdict in)) 0$"
    text, n_changed = re.subn(lines, r"\1 1", conf.read_text(), flags=re.MULTILINE)
    assert n_changed == 2
    conf.write_text(text)
    with other:
        other.wait_bridged()
        at_qos_0, at_qos_1 = _round_s(centre, plant, PLANT), _round_s(centre, other, OTHER)
    sys.stdout.write(f"median round: QoS 0 {1000 * at_qos_0:.1f} ms, QoS 1 {1000 * at_qos_1:.1f} ms\n")
    assert at_qos_0 < 1.5 * at_qos_1


def test_a_revoked_device_is_silenced_at_the_centre_though_its_site_does_not_know_yet(
    centre: LiveFleet, plant: SiteBroker
) -> None:
    verifier = Recorder()
    with centre.link("verifier.v1", verifier) as link, plant.fleet.link(PLANT, Recorder()) as device:
        link.subscribe([Subscription(WINDOW.filter("f", v="v1"))])
        link.wait_subscribed(WAIT_S)
        device.publish(topic(WINDOW, PLANT), b"before")
        assert verifier.next(Received).payload == b"before"
        centre.directory.registry.revoke_device(PLANT)
        centre.broker.reload(centre.directory.broker_files())
        device.publish(topic(WINDOW, PLANT), b"after")
        time.sleep(QUIET_S)
        assert not [each for each in verifier.waiting() if isinstance(each, Received)]


def test_the_access_list_of_the_centre_has_a_line_for_each_right_of_a_site() -> None:
    text = render_acl("f", ["verifier.v1"], (), {"plant": ("pi-1",)})
    section = text.split("user bridge.plant\n")[1].split("\n\n")[0].splitlines()
    allowed = [line for line in section if not line.startswith("topic deny ")]
    assert "topic write sled/1/f/verifier/+/device/pi-1/session/+/window" in allowed
    assert "topic read sled/1/f/verifier/+/status" in allowed
    assert {line for line in allowed if "pi-1" not in line} == {
        "topic read sled/1/f/verifier/+/status",
        "topic read sled/1/f/group/+/desired",
    }
    assert not any("#" in line for line in allowed)


def _round_s(centre: LiveFleet, site: SiteBroker, name: str) -> float:
    """The median of 30 windows of a device and their verdicts, one at a time."""
    at_device, at_verifier = Recorder(), Recorder()
    with site.fleet.link(name, at_device) as device, centre.link("verifier.v1", at_verifier) as verifier:
        device.subscribe([Subscription(topic(VERDICT, name))])
        verifier.subscribe([Subscription(WINDOW.filter("f", v="v1"))])
        device.wait_subscribed(WAIT_S)
        verifier.wait_subscribed(WAIT_S)
        took_s = []
        for _ in range(30):
            started_s = time.monotonic()
            device.publish(topic(WINDOW, name), b"window")
            at_verifier.next(Received)
            verifier.publish(topic(VERDICT, name), b"verdict")
            at_device.next(Received)
            took_s.append(time.monotonic() - started_s)
    return statistics.median(took_s)


def _code(link: object, recorder: Recorder, name: str) -> int:
    token = link.publish(name, b"x")  # type: ignore[attr-defined]  # a link
    return recorder.next(Published, lambda each: each.token == token).reason_code


def _retained(fleet: LiveFleet, identity: str, name: str) -> bytes | None:
    recorder = Recorder()
    with fleet.link(identity, recorder) as link:
        link.subscribe([Subscription(name)])
        link.wait_subscribed(WAIT_S)
        time.sleep(QUIET_S)
        found = [each.payload for each in recorder.waiting() if isinstance(each, Received)]
    return found[-1] if found else None
