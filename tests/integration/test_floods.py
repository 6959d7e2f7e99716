"""What a well-behaved session notices of a device that floods: with every part a process of its own.

The verifier sheds a flood by itself; `sled fleet serve` locks the device out. Rounds are compared with quiet
ones of the same moment, as others' work on the machine makes all of them longer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from protocol.link import Published
from protocol.topics import WINDOW
from tests.e2e.sled import wait_until
from tests.integration.attack import Attack, compare, connections, flood
from tests.integration.flooded_site import LOST_S, Session, Site, session_on
from tests.live_fleet import LiveFleet, Recorder
from tests.tiny_models import TinyPair

FACTOR = 1.5
QUARANTINED_WITHIN_S = 5.0
BACK_WITHIN_S = 5.0
N_TOKENS = 100
UNLIMITED_S = 8.0

pytestmark = pytest.mark.timeout(120)
ATTACKS: dict[str, Callable[[LiveFleet], AbstractContextManager[Attack]]] = {
    "2,000 messages a second": lambda live: flood(live, rate_s=2_000),
    "2,000 messages a second at QoS 1": lambda live: flood(live, rate_s=2_000, qos=1),
    "connections without certificate": connections,
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
    with ATTACKS[attack](site.live) as going_on:
        comparison = compare(session.round_s, going_on, FACTOR)
    print(f"{attack}: {comparison}")  # noqa: T201 - shown with -rP
    assert comparison.ratio < FACTOR, comparison
    assert comparison.n_samples >= 6, comparison


@pytest.mark.parametrize("qos", [0, 1])
def test_a_device_that_floods_without_limit_is_quarantined_and_the_round_returns(
    site: Site, session: Session, qos: int
) -> None:
    n_before = site.n_audited("quarantine-in-force")
    before_s = session.quiet_s()
    with site.served():
        with flood(site.live, qos=qos) as attack:
            began_s, n_sent_before = time.monotonic(), attack.count
            wait_until(lambda: site.n_audited("quarantine-in-force") > n_before)
            took_s = time.monotonic() - began_s
            assert took_s < QUARANTINED_WITHIN_S
            per_s = (attack.count - n_sent_before) / took_s
            assert per_s > 2_000
            medians_s = session.medians_s(BACK_WITHIN_S)
            done = site.command("fleet", "ls", "--json")
            assert done.exit_code == 0, done.stderr
            rows = json.loads(done.stdout)
            row = next(row for row in rows if row["device"] == "flood")
            assert row["presence"] == "quarantined"
            assert "flooded verifier v1" in row["problem"]
        quiet_s = max(before_s, session.quiet_s())
    rounds_ms = ", ".join(f"{1000 * each_s:.1f}" for each_s in medians_s)
    shown = f"QoS {qos}: {per_s:,.0f}/s, in quarantine after {took_s:.2f} s, rounds then {rounds_ms} ms"
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


@pytest.mark.slow
@pytest.mark.parametrize("qos", [0, 1])
def test_without_the_operators_service_an_unlimited_flood_slows_a_session_and_changes_no_token(
    tmp_path: Path, tiny_pair: TinyPair, qos: int
) -> None:
    """Nobody locks the device out, and it takes the broker's whole processor. A site of its own for each."""
    with Site(tmp_path, tiny_pair.target) as site, session_on(site) as session:
        quiet_s = session.quiet_s()
        session.begin_text(7)
        for _ in range(N_TOKENS):
            session.round_s()
        wanted = session.committed()
        session.begin_text(7)
        with flood(site.live, qos=qos) as attack:
            time.sleep(2.0)  # by then the verifier sheds it
            n_before, started_s = attack.count, time.monotonic()
            rounds_s = []
            while (lasted_s := time.monotonic() - started_s) < UNLIMITED_S:
                rounds_s.append(session.round_s())
            per_s = (attack.count - n_before) / lasted_s
        ended_s = time.monotonic()
        while session.round_s() >= LOST_S:
            assert time.monotonic() - ended_s < BACK_WITHIN_S, "the flood is over, and no round is answered"
        n_answered = sum(each_s < LOST_S for each_s in rounds_s)
        shown = f"{per_s:,.0f}/s, {n_answered} of {len(rounds_s)} rounds answered in {lasted_s:.0f} s"
        print(f"QoS {qos}, no service: {shown}, quiet {1000 * quiet_s:.1f} ms")  # noqa: T201 - with -rP
        assert per_s > 2_000
        assert n_answered >= len(rounds_s) / 3
        got = session.committed()
        n_same = min(len(got), len(wanted))
        assert got[:n_same] == wanted[:n_same]
        assert session.n_connects == 1
        site.live.broker.check()
