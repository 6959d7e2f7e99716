"""The private Mosquitto as a child process: ports, files, reload, and its end."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from broker_config import private_broker
from broker_config.configuration import BrokerFiles
from broker_config.private_broker import PrivateBroker
from protocol.errors import BrokerError
from protocol.link import Connected, Published, Received, Subscription
from protocol.topics import DEVICE_STATUS, VERIFIER_STATUS
from provisioning.fleet_directory import FleetDirectory
from tests.live_fleet import WAIT_S, LiveFleet, Recorder, make_fleet

STATUS = DEVICE_STATUS.topic("f", d="dev-a")


@pytest.fixture
def files(shared_fleet_directory: FleetDirectory) -> BrokerFiles:
    return shared_fleet_directory.broker_files()


def test_two_of_them_run_side_by_side(files: BrokerFiles, tmp_path: Path) -> None:
    with PrivateBroker(files, tmp_path / "1") as one, PrivateBroker(files, tmp_path / "2") as two:
        ports = [
            getattr(each, f"{name}_port")
            for each in (one, two)
            for name in ("device", "backend", "claim", "admin")
        ]
        assert len(set(ports)) == 8
        for port in ports:
            socket.create_connection(("127.0.0.1", port), timeout=WAIT_S).close()


def test_given_ports_are_used(files: BrokerFiles, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    with PrivateBroker(files, tmp_path, device_port=port) as broker:
        assert broker.device_port == port


@pytest.mark.parametrize("name", ["device_port", "backend_port"])
def test_a_busy_port_is_named(files: BrokerFiles, tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        broker = PrivateBroker(files, tmp_path, **{name: port})
        with pytest.raises(BrokerError, match=f"port {port}.* is in use") as failure, broker:
            pass
    assert "another port" in failure.value.hint


def test_a_free_port_taken_in_the_last_moment_is_replaced(
    files: BrokerFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rival:
        choose = private_broker.choose_ports
        chosen = []

        def unlucky(listen: str, fixed: Mapping[str, int | None]) -> private_broker.BrokerPorts:
            ports = choose(listen, fixed)
            chosen.append(ports)
            return dataclasses.replace(ports, devices=rival.getsockname()[1]) if len(chosen) == 1 else ports

        monkeypatch.setattr(private_broker, "choose_ports", unlucky)
        with PrivateBroker(files, tmp_path) as broker:
            assert broker.device_port == chosen[1].devices


def test_a_missing_mosquitto_is_said_before_anything_is_written(
    files: BrokerFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> Path:
        raise BrokerError("Mosquitto, the MQTT broker, is not installed")

    monkeypatch.setattr(private_broker, "find_mosquitto", nowhere)
    with pytest.raises(BrokerError, match="not installed"), PrivateBroker(files, tmp_path / "broker"):
        pass
    assert not (tmp_path / "broker").exists()


def test_a_broker_that_cannot_start_says_why(files: BrokerFiles, tmp_path: Path) -> None:
    broken = dataclasses.replace(files, server_cert=tmp_path / "gone.pem")
    with pytest.raises(BrokerError, match=r"did not start: .*Error: .*gone\.pem") as failure:
        PrivateBroker(broken, tmp_path / "broker").__enter__()
    assert "mosquitto.log" in failure.value.hint


def test_its_end_is_noticed(own_fleet: LiveFleet) -> None:
    own_fleet.broker.check()
    own_fleet.broker.kill()
    with pytest.raises(BrokerError, match="has ended"):
        own_fleet.broker.check()


def test_a_crashed_one_is_started_again_on_its_ports_unless_it_goes_on_crashing(own_fleet: LiveFleet) -> None:
    broker = own_fleet.broker
    assert not broker.revive()
    port = broker.device_port
    with own_fleet.link("dev-a", (recorder := Recorder())):
        recorder.next(Connected)
        for _ in range(3):
            _crash(broker)
            assert broker.revive()
            assert broker.device_port == port
            recorder.next(Connected)
    _crash(broker)
    with pytest.raises(BrokerError, match="has ended"):
        broker.revive()


def test_one_that_ended_by_itself_is_not_started_again(own_fleet: LiveFleet) -> None:
    own_fleet.broker.stop()
    with pytest.raises(BrokerError, match="has ended"):
        own_fleet.broker.revive()


def test_a_long_log_is_begun_anew_and_its_end_is_kept(
    own_fleet: LiveFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = own_fleet.broker
    log, kept = broker.log_file, broker.log_file.with_name("mosquitto.log.1")
    assert not broker.revive()
    assert not kept.exists()
    for _ in range(2):
        with own_fleet.link("dev-a", (recorder := Recorder())):
            recorder.next(Connected)
        n_long = log.stat().st_size
        monkeypatch.setattr(private_broker, "_MOST_LOG_BYTES", n_long - 1)
        assert not broker.revive()
        assert log.stat().st_size < n_long <= kept.stat().st_size
        assert "dev-a" in kept.read_text()
    with own_fleet.link("dev-b", (recorder := Recorder())):
        recorder.next(Connected)
    assert "dev-b" in broker.log
    broker.reload()
    os.truncate(log, 0)
    broker.reload()
    log.unlink()
    assert not broker.revive()


def _crash(broker: PrivateBroker) -> None:
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGSEGV)
    deadline_s = time.monotonic() + WAIT_S
    while broker.pid is not None:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.mark.parametrize("keep_persistence", [True, False])
def test_a_restart_keeps_or_forgets_what_was_retained(
    own_fleet: LiveFleet, *, keep_persistence: bool
) -> None:
    device, operator = Recorder(), Recorder()
    with own_fleet.link("dev-a", device) as link:
        link.publish(STATUS, b"kept", is_retained=True)
        assert device.next(Published).reason_code in (0x00, 0x10)
    port = own_fleet.broker.device_port
    own_fleet.broker.restart(keep_persistence=keep_persistence)
    assert own_fleet.broker.device_port == port
    with own_fleet.link("fleet.ops", operator) as ops:
        ops.subscribe([Subscription(STATUS), Subscription("sled/1/f/operator/marker/+")])
        ops.wait_subscribed(WAIT_S)
        ops.publish("sled/1/f/operator/marker/end", b"end")
        operator.next(Received, lambda event: event.payload == b"end")
    got = [event.payload for event in operator.events if isinstance(event, Received)]
    assert got == ([b"kept", b"end"] if keep_persistence else [b"end"])


def test_a_new_backend_is_let_in_by_a_reload_that_disturbs_nobody(tmp_path: Path) -> None:
    device, verifier = Recorder(), Recorder()
    directory = make_fleet(tmp_path / "fleet", "f", ("verifier.v1",))
    topic = VERIFIER_STATUS.topic("f", v="v9")
    with LiveFleet(tmp_path, directory=directory) as fleet, fleet.link("dev-a", device) as link:
        device.next(Connected)
        directory.add_backend("verifier", "v9")
        with fleet.link("verifier.v9", verifier) as new:
            new.publish(topic, b"x")
            assert verifier.next(Published).reason_code == 0x87
            fleet.broker.reload(directory.broker_files())
            new.publish(topic, b"x")
            assert verifier.next(Published).reason_code == 0x10
        assert link.traffic.n_connects == 1


def test_it_outlives_the_thread_that_started_it(files: BrokerFiles, tmp_path: Path) -> None:
    """The kernel's notice of a parent's death is about threads."""
    broker = PrivateBroker(files, tmp_path)
    thread = threading.Thread(target=broker.__enter__)
    thread.start()
    thread.join()
    try:
        time.sleep(0.2)
        broker.check()
    finally:
        broker.stop()


def test_it_does_not_see_the_terminals_interrupt(own_fleet: LiveFleet) -> None:
    process = own_fleet.broker._process
    assert process is not None
    assert os.getpgid(process.pid) != os.getpgid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's notice of a parent's death is Linux'")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT", "exit", "crash"])
def test_it_ends_with_its_parent_whatever_way_that_ends(
    shared_fleet_directory: FleetDirectory, tmp_path: Path, how: str
) -> None:
    code = textwrap.dedent("""
        import os, signal, sys, time
        from pathlib import Path
        # A test run in the background of a shell inherits an ignored SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from broker_config.private_broker import PrivateBroker
        from provisioning.fleet_directory import FleetDirectory
        broker = PrivateBroker(FleetDirectory.open(Path(sys.argv[1])).broker_files(), Path(sys.argv[2]))
        broker.__enter__()
        print(broker._process.pid, flush=True)
        sys.stdin.readline()
        if sys.argv[3] == "crash":
            os.abort()
    """)
    command = [sys.executable, "-c", code, str(shared_fleet_directory.path), str(tmp_path), how]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        if how.startswith("SIG"):
            parent.send_signal(signal.Signals[how])
        else:
            parent.stdin.write("\n")
            parent.stdin.flush()
        parent.wait(WAIT_S)
        deadline_s = time.monotonic() + WAIT_S
        while _is_running(pid):
            assert time.monotonic() < deadline_s, "the broker outlived its parent"
            time.sleep(0.02)


def _is_running(pid: int) -> bool:
    """Whether the process exists and is more than an entry that nobody has collected."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
