"""Offers that outlive the broker's memory: `sled fleet serve` makes them again."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.main import run
from fleet.operator import Operator
from protocol.topics import MODEL_OFFER
from tests.e2e.sled import wait_until
from tests.integration.delivering_device import padded_model
from tests.integration.served_fleet import served
from tests.live_fleet import LiveFleet

OFFER = MODEL_OFFER.topic("f", d="pi-1")


def offers(live: LiveFleet) -> dict[str, bytes]:
    with Operator(live.endpoint("fleet.ops"), identity="fleet.ops", fleet="f") as operator:
        return operator.retained([MODEL_OFFER.filter("f")])


@pytest.mark.timeout(120)
def test_an_offer_that_the_broker_lost_is_made_again_and_a_withdrawn_one_is_not(tmp_path: Path) -> None:
    with LiveFleet(tmp_path) as live:
        issued = live.directory.authority("device").issue("pi-1")
        live.directory.registry.add_device("pi-1", "own", issued.certificate)
        where = (
            "--fleet",
            str(live.directory.path),
            "--broker",
            f"localhost:{live.broker.backend_port}",
        )
        model = padded_model(tmp_path / "better.gguf", 100_000)
        assert run(["fleet", "models", "push", str(model), "pi-1", *where]) == 0
        made = offers(live)
        assert set(made) == {OFFER}
        live.broker.restart(keep_persistence=False)
        assert offers(live) == {}
        assert run(["fleet", "models", "prune", *where]) == 0
        with served(live):
            wait_until(lambda: offers(live) == made)
            assert run(["fleet", "models", "withdraw", "pi-1", *where]) == 0
        assert offers(live) == {}
        n_before = live.broker.log.count("as fleet.models")
        with served(live):  # a whole round of housekeeping before it ends
            wait_until(lambda: live.broker.log.count("as fleet.models") > n_before)
        assert offers(live) == {}
        assert list((live.directory.path / "models").glob("*.gguf"))
