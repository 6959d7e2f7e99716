"""The operator's service, running beside a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cli.broker_address import BrokerAddress
from cli.operator_service import OperatorService
from tests.live_fleet import LiveFleet


@contextmanager
def served(live: LiveFleet) -> Iterator[None]:
    """The operator's service with a round of housekeeping a second."""
    broker, stop = live.broker, threading.Event()
    address = BrokerAddress("localhost", broker.device_port, broker.backend_port, broker.claim_port)
    service = OperatorService(live.directory, address, None, interval_s=1.0)
    live.broker.reload(live.directory.broker_files())
    thread = threading.Thread(target=service.run_until, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
