"""Metrics: own registry, bounded labels, an endpoint that is only there when asked for."""

from __future__ import annotations

import socket
import urllib.request

import pytest

from edge_verifier.metrics import Metrics
from edge_verifier.step_log import StepLog
from edge_verifier.step_record import StepRecord, StepRecords
from protocol.errors import ConfigError

RECORD = StepRecord(
    number=1,
    started_s=0.0,
    step_s=0.0082,
    wall_s=0.009,
    settle_s=0.001,
    n_sessions=5,
    n_windows=4,
    n_tokens=31,
    n_prompt_tokens=10,
    n_drafted=17,
    n_accepted=12,
    queue_s=(0.001, 0.002, 0.003, 0.004),
)


def test_steps_and_refusals_are_served_over_http() -> None:
    metrics = Metrics()
    metrics.stepped(RECORD)
    metrics.refused("bad_message", "dev-a")
    metrics.limit(4096)
    metrics.load(3, 0.5, n_kv_positions=640, n_prefix_positions=128)
    endpoint = metrics.serve(0, "127.0.0.1")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics") as answer:
            text = answer.read().decode()
    finally:
        endpoint.stop()
    assert "sled_accepted_tokens_total 12.0" in text
    assert "sled_queue_seconds_count 4.0" in text
    for gauge in (
        "sessions 3.0",
        "kv_positions 640.0",
        "kv_positions_limit 4096.0",
        "prefix_positions 128.0",
    ):
        assert f"\nsled_{gauge}\n" in text
    assert 'sled_refusals_total{device="dev-a",reason="bad_message"} 1.0' in text


def test_a_busy_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            Metrics().serve(port, "127.0.0.1")


def test_labels_are_bounded() -> None:
    metrics = Metrics()
    for i in range(1200):
        metrics.refused("bad_message", f"dev-{i}")
    assert metrics.n_refused("bad_message", "dev-999") == 1
    assert metrics.n_refused("bad_message", "other") == 200


def test_the_step_line_has_every_figure_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "edge_verifier"):
        log = StepLog(20, summary_s=60.0)
        log(RECORD)
        log.summarise()
    line, summary = caplog.messages
    assert line == (
        "step number=1 sessions=5 windows=4 tokens=31 prompt_tokens=10 drafted=17 accepted=12"
        " longest_queue_ms=4.0 step_ms=8.2 settle_ms=1.0"
    )
    assert summary == "1 steps: 5.0 sessions each, 5 at most, 31.0 tokens, 8.2 ms"


def test_records_are_kept_up_to_a_bound_and_told_to_listeners() -> None:
    records, heard = StepRecords(n_kept=2), []
    records.listen(heard.append)
    for _ in range(3):
        records.add(RECORD)
    assert len(records.snapshot()) == 2
    assert len(heard) == 3
