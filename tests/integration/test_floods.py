"""What a well-behaved session notices of a device that floods: with every part a process of its own.

The verifier sheds a flood by itself; `sled fleet serve` locks the device out. Rounds are compared with quiet
ones of the same moment, as others' work on the machine makes all of them longer.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from protocol.link import Published
from protocol.topics import WINDOW
from tests.e2e.sled import wait_until
from tests.integration.flooded_site import Session, Site, flood, session_on
from tests.integration.test_attacks import CONNECTIONS, attacker
from tests.live_fleet import Recorder
from tests.tiny_models import TinyPair

FACTOR = 1.5
QUARANTINED_WITHIN_S = 5.0
BACK_WITHIN_S = 5.0

pytestmark = pytest.mark.timeout(240)
Attack = Callable[[Site], contextlib.AbstractContextManager[subprocess.Popen[str]]]
ATTACKS: dict[str, Attack] = {
    "2,000 messages a second": lambda site: flood(site, rate_s=2_000),
    "2,000 messages a second at QoS 1": lambda site: flood(site, rate_s=2_000, qos=1),
    "connections without certificate": lambda site: attacker(CONNECTIONS, site.live.broker.device_port),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_pair: TinyPair) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), tiny_pair.target) as site:
        yield site


@pytest.fixture
def session(site: Site) -> Iterator[Session]:
    with session_on(site) as session:
        yield session


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_session_keeps_its_round_under_attack(site: Site, session: Session, attack: str) -> None:
    session.median_s()
    with ATTACKS[attack](site) as process:
        for _ in range(4):
            under_s, quiet_s = session.under_and_quiet_s(process)
            print(f"{attack}: {1000 * under_s:.1f} ms, quiet {1000 * quiet_s:.1f} ms")  # noqa: T201 - with -rP
            if under_s < FACTOR * quiet_s:
                break
        assert under_s < FACTOR * quiet_s, (under_s, quiet_s)


@pytest.mark.parametrize("qos", [0, 1])
def test_a_device_that_floods_without_limit_is_quarantined_and_the_round_returns(
    site: Site, session: Session, qos: int
) -> None:
    n_before = site.n_audited("quarantine-in-force")
    before_s = session.quiet_s()
    with site.served():
        with flood(site, qos=qos):
            began_s = time.monotonic()
            wait_until(lambda: site.n_audited("quarantine-in-force") > n_before)
            took_s = time.monotonic() - began_s
            assert took_s < QUARANTINED_WITHIN_S
            medians_s = session.medians_s(BACK_WITHIN_S)
            done = site.command("fleet", "ls", "--json")
            assert done.exit_code == 0, done.stderr
            rows = json.loads(done.stdout)
            row = next(row for row in rows if row["device"] == "flood")
            assert row["presence"] == "quarantined"
            assert "flooded verifier v1" in row["problem"]
        quiet_s = max(before_s, session.quiet_s())
    rounds_ms = ", ".join(f"{1000 * each_s:.1f}" for each_s in medians_s)
    shown = f"QoS {qos}: in quarantine after {took_s:.2f} s, rounds then {rounds_ms} ms"
    print(f"{shown}, quiet {1000 * quiet_s:.1f} ms")  # noqa: T201 - shown with -rP
    assert min(medians_s) < FACTOR * quiet_s, (medians_s, quiet_s)
    assert site.n_audited("quarantine-in-force") == n_before + 1
    assert site.command("fleet", "quarantine", "lift", "flood").exit_code == 0
    with site.live.link("flood", Recorder(), is_clean_start=True, session_expiry_s=0):
        pass


def test_a_device_that_comes_back_with_two_thousand_queued_messages_is_not_quarantined(site: Site) -> None:
    n_before = site.n_audited("quarantine")
    recorder = Recorder()
    topic = WINDOW.topic("f", v="v1", d="flood", n=0)
    with site.served(), site.live.link("flood", recorder, max_queue=2_500) as link:
        for _ in range(2_000):
            link.publish(
                topic, b'{"v":1,"u":"0000000000000001","g":1,"r":1,"a":3,"b":3,"h":"' + b"0" * 16 + b'"}'
            )
        for _ in range(2_000):
            recorder.next(Published)
        with session_on(site) as session:
            assert session.medians_s(2.5)
    assert site.n_audited("quarantine") == n_before
