"""A draft model reaches a device over a real broker, whatever is cut or killed on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import orjson
import pytest

from device_agent.chat import ChatOptions
from device_agent.delivery import desk, pull
from device_agent.delivery.pace import YIELDING_BYTES_PER_S
from device_agent.delivery.pull import WINDOW_BLOCKS
from device_agent.delivery.slots import read_slots
from fleet.model_server import ModelServer
from protocol.codec import encode
from protocol.link import Received, Subscription
from protocol.model_block import BLOCK_BYTES, ModelBlock
from protocol.model_messages import ModelRequest
from protocol.topics import MODEL_REQUEST
from provisioning.model_signer import ModelSigner
from provisioning.model_store import ModelStore
from tests.integration.delivering_device import (
    DeliveringDevice,
    make_home,
    offer_to,
    padded_model,
    serving_models,
)
from tests.integration.live_chat import alone, last, serving
from tests.integration.live_device import PacedEngine
from tests.live_fleet import WAIT_S, LiveFleet, Recorder
from tests.table_device import PIECES, STOP_ID, TableDrafter, TableVocabulary, table_agent, table_engine
from tests.tcp_proxy import TcpProxy

MIB = 1024 * 1024
N_CUTS = 20


def until(condition: Callable[[], bool]) -> None:
    """Poll often, so that a fast download does not run ahead."""
    deadline_s = time.monotonic() + 3 * WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def has_come(device: DeliveringDevice, proxy: TcpProxy, *, n_connects: int, n_bytes: int) -> bool:
    return device.link.traffic.n_connects == n_connects and len(proxy.downlink) > n_bytes


def test_30_mib_over_a_link_that_is_cut_20_times_are_sent_at_most_a_tenth_twice(
    depot: LiveFleet, model_server: ModelServer, tmp_path: Path
) -> None:
    size = 30 * MIB
    staged = ModelStore(depot.directory).stage(padded_model(tmp_path / "big.gguf", size), "big")
    offer_to(depot, "often-cut", staged.offer)
    with TcpProxy("127.0.0.1", depot.broker.device_port) as proxy:
        home = make_home(depot, tmp_path / "home", "often-cut", port=proxy.port)
        with DeliveringDevice(home) as device:
            for cut in range(N_CUTS):
                n_bytes = (cut + 1) * size // (N_CUTS + 2)
                until(partial(has_come, device, proxy, n_connects=cut + 1, n_bytes=n_bytes))
                proxy.cut()
                time.sleep(0.02)
                proxy.mend()
            device.wait_for("active", "refused", "failed", within_s=60)
            assert device.link.traffic.n_connects == N_CUTS + 1
            slots = device.slots()
        n_down = len(proxy.downlink)
    delivered = home / slots.current.path
    assert delivered.read_bytes() == staged.file.read_bytes()
    assert model_server.n_sent_bytes <= 1.1 * size
    assert n_down <= 1.1 * size


def test_an_offer_comes_once_and_not_at_every_reconnect(depot: LiveFleet, tmp_path: Path) -> None:
    """It is tens of kilobytes long; a new session at the broker, and a new process, still get it."""
    staged = ModelStore(depot.directory).stage(padded_model(tmp_path / "once.gguf", 2 * MIB, b"1"), "once")
    offer_to(depot, "once", staged.offer)
    with TcpProxy("127.0.0.1", depot.broker.device_port) as proxy:
        home = make_home(depot, tmp_path / "home", "once", port=proxy.port)
        for _ in range(2):
            with DeliveringDevice(home, limit_kib_per_s=1) as device:
                assert device.delivery.offered.wait(WAIT_S)
                device.link.wait_subscribed(WAIT_S)
                n_down = device.link.traffic.downlink_bytes
                assert n_down > len(encode(staged.offer))
                for n_connects in (2, 3):
                    proxy.cut()
                    proxy.mend()
                    until(lambda n=n_connects: device.link.traffic.n_connects == n)
                    device.link.wait_subscribed(WAIT_S)
                time.sleep(0.2)
                assert device.link.traffic.downlink_bytes < n_down + 3 * 16_500


def test_a_device_that_is_killed_goes_on_where_it_was(
    depot: LiveFleet, model_server: ModelServer, tmp_path: Path
) -> None:
    """Kill -9 in the middle, twice; what was under way is all that is sent again."""
    size = 4 * MIB
    staged = ModelStore(depot.directory).stage(padded_model(tmp_path / "killed.gguf", size), "killed")
    home = make_home(depot, tmp_path / "home", "killed")
    offer_to(depot, "killed", staged.offer)
    command = [sys.executable, "-m", "cli", "device", "models", "pull", "--home", str(home), "--json"]
    environment = {**os.environ, "SLED_DEVICE_SETTINGS_DOWNLOAD_KIB_PER_S": "1024"}
    partial_file = home / "models" / "incoming" / f"{staged.manifest.key}.part"
    for kill in range(2):
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            until(lambda n=(kill + 1) * MIB // 2: partial_file.exists() and partial_file.stat().st_size > n)
            process.kill()
    environment["SLED_DEVICE_SETTINGS_DOWNLOAD_KIB_PER_S"] = "0"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert orjson.loads(done.stdout)["state"] == "active"
    slots = read_slots(home)
    assert slots is not None
    assert (home / slots.current.path).read_bytes() == staged.file.read_bytes()
    assert model_server.n_sent_bytes <= size + 2 * (WINDOW_BLOCKS * BLOCK_BYTES + staged.manifest.chunk_bytes)


def test_a_service_that_is_killed_is_missed_for_a_moment_only(
    depot: LiveFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "FIRST_TIMEOUT_S", 2.0)  # what is late on a busy machine is not asked for twice
    staged = ModelStore(depot.directory).stage(padded_model(tmp_path / "served.gguf", 3 * MIB), "served")
    offer_to(depot, "served", staged.offer)
    with DeliveringDevice(make_home(depot, tmp_path / "home", "served"), limit_kib_per_s=1024) as device:
        with serving_models(depot) as first:
            device.wait_for_bytes(MIB)
        with serving_models(depot) as second:
            assert device.wait_for("active", "refused", "failed").state == "active"
            assert first.n_sent_bytes + second.n_sent_bytes <= 1.1 * 3 * MIB


def test_without_the_service_a_device_says_what_it_waits_for(
    depot: LiveFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "FIRST_TIMEOUT_S", 0.1)
    staged = ModelStore(depot.directory).stage(padded_model(tmp_path / "alone.gguf", 2 * MIB), "alone")
    offer_to(depot, "alone", staged.offer)
    with DeliveringDevice(make_home(depot, tmp_path / "home", "alone")) as device:
        assert "is sled fleet serve running?" in device.wait_for("waiting").reason
        with serving_models(depot):
            assert device.wait_for("active", "refused", "failed").state == "active"


def test_nobody_gets_what_was_offered_to_another(
    depot: LiveFleet, model_server: ModelServer, tmp_path: Path
) -> None:
    staged = ModelStore(depot.directory).stage(padded_model(tmp_path / "mine.gguf", 2 * MIB), "mine")
    offer_to(depot, "owner", staged.offer)
    recorder = Recorder()
    with depot.link("stranger", recorder) as link:
        link.subscribe([Subscription("#", qos=0)])
        link.wait_subscribed(WAIT_S)
        request = ModelRequest(model=staged.manifest.key, blocks=((0, 4),))
        link.publish(MODEL_REQUEST.topic("f", d="stranger"), encode(request), qos=0)
        answer = recorder.next(Received)
    assert ModelBlock.decode(answer.payload).is_missing
    assert model_server.n_sent_bytes == 0


def test_a_model_waits_while_somebody_waits_for_an_answer(
    depot: LiveFleet, model_server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "try_out", lambda *_: None)
    staged = ModelStore(depot.directory).stage(padded_model(tmp_path / "b.gguf", 4 * MIB, b"b"), "background")
    fitting = staged.manifest.model_copy(update={"vocabulary": TableVocabulary.fingerprint})
    engine = PacedEngine(
        step_s=0.05, vocab_size=len(PIECES), seed=0, stop_ids=frozenset({STOP_ID}), max_context=512
    )
    drafter = TableDrafter(table_engine(), error_rate=1.0)
    with (
        serving(depot, engine),
        table_agent(depot, "talker", tmp_path, drafter, max_draft=1, takes_models=True) as agent,
    ):
        agent.wait_ready(WAIT_S)
        events = agent.chat(ChatOptions(temperature=1.3, seed=8, max_tokens=40)).send("hold on")
        next(events)
        started_s = time.monotonic()
        offer_to(depot, "talker", ModelSigner.of(depot.directory).sign(fitting))
        stats = last(events)
        answer_s = time.monotonic() - started_s
        n_meanwhile = model_server.n_sent_bytes
        assert answer_s > 1.0
        assert 0 < n_meanwhile <= YIELDING_BYTES_PER_S * (answer_s + 1) + BLOCK_BYTES
        assert list(stats.token_ids) == alone(stats, 40)
        until(lambda: agent.has_new_model)
