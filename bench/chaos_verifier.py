"""One verifier of a chaos run, as a process, until SIGTERM.

python -m bench.chaos_verifier FLEET NAME PORT RECORD LIFE --pair bundled|table
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

import edge_verifier.reception
from bench.chaos_models import PAIRS, TablePace, new_engine
from bench.recording import Recording, record_links
from edge_verifier.service import VerifierService
from protocol.identifiers import backend_identity
from protocol.link import Endpoint
from provisioning.fleet_directory import FleetDirectory


def main() -> None:
    """Run one life of one verifier."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fleet", type=Path)
    parser.add_argument("name")
    parser.add_argument("port", type=int, help="backend listener on this machine")
    parser.add_argument("record", type=Path)
    parser.add_argument("life")
    parser.add_argument("--pair", choices=PAIRS, default="bundled")
    parser.add_argument("--step-s", type=float, default=0.01, help="of a table")
    arguments = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    record_links(Recording(arguments.record, arguments.life), edge_verifier.reception)
    directory = FleetDirectory.open(arguments.fleet)
    tls = directory.endpoint_tls(backend_identity("verifier", arguments.name))
    engine = new_engine(arguments.pair, n_threads=1, pace=TablePace(step_s=arguments.step_s))
    endpoint = Endpoint("localhost", arguments.port, tls)
    try:
        VerifierService(engine, endpoint, directory.fleet, arguments.name).run_until(stop)
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main()
