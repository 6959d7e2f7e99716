"""A fleet's broker and one verifier, both on this machine, for as long as a `with` block lasts."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from broker_config.private_broker import PrivateBroker
from cli.broker_address import BrokerAddress
from cli.kept_verifier import KeptVerifier
from cli.targets import resolve_target
from cli.verifier_process import VerifierProcess

if TYPE_CHECKING:
    from provisioning.fleet_directory import FleetDirectory

VERIFIER_NAME = "v1"
CHECK_INTERVAL_S = 0.5
"""How often whoever runs a site calls its `check`."""


class Site:
    """Broker and verifier of `fleet`.

    Args:
        target: Hugging Face directory or id; None is the bundled target.
        device_port, backend_port, claim_port: None takes free ones.
        host: by which devices reach this machine; written into the fleet's address file.

    Raises:
        ModelError: the target cannot be what it is said to be; before anything is started.
    """

    def __init__(
        self,
        fleet: FleetDirectory,
        *,
        target: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        listen: str = "127.0.0.1",
        device_port: int | None = None,
        backend_port: int | None = None,
        claim_port: int | None = None,
        host: str = "localhost",
        log_file: Path | None = None,
        verbosity: int = 0,
    ) -> None:
        resolve_target(target)
        self._fleet = fleet
        self._log_file = log_file
        self._verbosity = verbosity
        self._host = host
        self._verifier_arguments = [
            *("--fleet", str(fleet.path), "--name", VERIFIER_NAME),
            *(("--target", target) if target else ()),
            *(("--dtype", dtype) if dtype else ()),
            *(("--threads", str(threads)) if threads else ()),
            *(("--log-steps",) if log_file else ()),
        ]
        fleet.add_backend("verifier", VERIFIER_NAME)
        self.broker = PrivateBroker(
            fleet.broker_files(),
            fleet.path / "broker",
            listen=listen,
            device_port=device_port,
            backend_port=backend_port,
            claim_port=claim_port,
        )
        self.verifier = KeptVerifier(self._start_verifier)
        self._parts = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as parts:
            parts.enter_context(self.broker)
            self.address.store(self._fleet.path)
            parts.enter_context(self.verifier)
            self._parts = parts.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.close()

    @property
    def address(self) -> BrokerAddress:
        """Where the broker listens."""
        broker = self.broker
        return BrokerAddress(self._host, broker.device_port, broker.backend_port, broker.claim_port)

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """Return once the verifier takes sessions; what it says of itself."""
        return self.verifier.wait_ready(timeout_s)

    def check(self) -> None:
        """Start a broker that has crashed again, and a verifier that has ended; never waits for long.

        Raises:
            BrokerError: the broker has ended otherwise, or crashes again and again.
            VerifierLostError: the verifier ends again and again.
        """
        self.broker.revive()
        self.verifier.check()

    def _start_verifier(self) -> VerifierProcess:
        return VerifierProcess(self._verifier_arguments, log_file=self._log_file, verbosity=self._verbosity)
