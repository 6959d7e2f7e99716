"""What the verifier counts, for Prometheus; served over HTTP only when a port is configured."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from edge_verifier.step_record import StepRecord
from protocol.errors import ConfigError

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_MAX_DEVICES = 1000
"""Label values are bounded: beyond, refusals of further devices are counted as `other`."""


class Metrics:
    """Counters of one verifier, in a registry of their own. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._step_s = Histogram(
            "sled_step_seconds", "Time of a step", buckets=_SECONDS, registry=self.registry
        )
        self._sessions_in_step = Histogram(
            "sled_step_sessions", "Sessions in a step", buckets=_COUNTS, registry=self.registry
        )
        self._tokens_in_step = Histogram(
            "sled_step_tokens", "Tokens in a step", buckets=_COUNTS, registry=self.registry
        )
        self._queue_s = Histogram(
            "sled_queue_seconds",
            "Time from a window's arrival to its step",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._drafted = Counter("sled_drafted_tokens", "Drafted tokens judged", registry=self.registry)
        self._accepted = Counter("sled_accepted_tokens", "Drafted tokens that stand", registry=self.registry)
        self._failed_steps = Counter(
            "sled_failed_steps", "Steps that the engine failed", registry=self.registry
        )
        self._shared_prefixes = Counter(
            "sled_shared_prefixes", "Prompts that began with what was cached", registry=self.registry
        )
        self._saved_tokens = Counter(
            "sled_saved_prompt_tokens", "Prompt tokens not computed for it", registry=self.registry
        )
        self._kv_positions = Gauge(
            "sled_kv_positions", "KV positions taken, in whole blocks", registry=self.registry
        )
        self._kv_positions_limit = Gauge(
            "sled_kv_positions_limit", "KV positions that there are; 0 for no limit", registry=self.registry
        )
        self._prefix_positions = Gauge(
            "sled_prefix_positions",
            "KV positions that hold prefixes for sessions to come",
            registry=self.registry,
        )
        self._sessions = Gauge("sled_sessions", "Sessions held", registry=self.registry)
        self._price = Gauge(
            "sled_price_milliseconds", "Step time that one more position costs", registry=self.registry
        )
        self._dropped = Counter(
            "sled_dropped_windows", "Windows dropped silently", ["reason"], registry=self.registry
        )
        self._refusals = Counter(
            "sled_refusals", "Windows and payloads refused", ["reason", "device"], registry=self.registry
        )
        self._floods = Counter(
            "sled_flood_complaints", "Complaints about devices that flood", ["device"], registry=self.registry
        )
        self._devices: set[str] = set()

    def shared(self, n_saved: int) -> None:
        """Count a prompt that began with `n_saved` cached tokens; 0 for a prefix that was only kept."""
        if n_saved:
            self._shared_prefixes.inc()
            self._saved_tokens.inc(n_saved)

    def stepped(self, record: StepRecord) -> None:
        """Count one step."""
        self._step_s.observe(record.step_s)
        self._sessions_in_step.observe(record.n_sessions)
        self._tokens_in_step.observe(record.n_tokens)
        for queue_s in record.queue_s:
            self._queue_s.observe(queue_s)
        self._drafted.inc(record.n_drafted)
        self._accepted.inc(record.n_accepted)

    def step_failed(self) -> None:
        """Count a step that gave nothing."""
        self._failed_steps.inc()

    def refused(self, reason: str, device: str, count: int = 1) -> None:
        """Count refusals, answered or not."""
        self._refusals.labels(reason, self._label(device)).inc(count)

    def flooded(self, device: str) -> None:
        """Count a complaint to the fleet."""
        self._floods.labels(self._label(device)).inc()

    def dropped(self, reason: str) -> None:
        """Count a window that needs no answer."""
        self._dropped.labels(reason).inc()

    def limit(self, max_positions: int | None) -> None:
        """Set the KV budget."""
        self._kv_positions_limit.set(max_positions or 0)

    def load(
        self, n_sessions: int, price: float, *, n_kv_positions: int = 0, n_prefix_positions: int = 0
    ) -> None:
        """Set the present load; the prefixes' positions are among those of `n_kv_positions`."""
        self._kv_positions.set(n_kv_positions)
        self._prefix_positions.set(n_prefix_positions)
        self._sessions.set(n_sessions)
        self._price.set(price)

    def n_refused(self, reason: str, device: str) -> int:
        """Refusals counted so far."""
        return int(self.registry.get_sample_value("sled_refusals_total", _labels(reason, device)) or 0)

    def n_complaints(self, device: str) -> int:
        """Complaints counted so far."""
        return int(self.registry.get_sample_value("sled_flood_complaints_total", {"device": device}) or 0)

    def _label(self, device: str) -> str:
        if device not in self._devices:
            if len(self._devices) >= _MAX_DEVICES:
                return "other"
            self._devices.add(device)
        return device

    def serve(self, port: int, address: str) -> MetricsEndpoint:
        """Serve the registry over HTTP.

        Raises:
            ConfigError: the port cannot be opened.
        """
        try:
            return MetricsEndpoint(self.registry, port, address)
        except OSError as error:
            raise ConfigError(
                f"metrics port {address}:{port} cannot be opened: {error.strerror}",
                hint="choose another metrics_port, or none",
            ) from error


class MetricsEndpoint:
    """The HTTP endpoint, on a thread of its own."""

    def __init__(self, registry: CollectorRegistry, port: int, address: str) -> None:
        self._server, self._thread = start_http_server(port, address, registry)

    @property
    def port(self) -> int:
        """Where it listens; useful with port 0."""
        return int(self._server.server_port)

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _labels(reason: str, device: str) -> dict[str, str]:
    return {"reason": reason, "device": device}
