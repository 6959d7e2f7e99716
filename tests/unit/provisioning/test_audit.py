"""The audit log: every action a line, appended whole, readable whatever happened to it."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.errors import ProvisioningError
from provisioning.audit import AuditLog
from provisioning.fleet_directory import FleetDirectory


def test_records_come_back_in_order_with_who_and_when(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("revoke", "pi-1", reason="stolen")
    log.append("provision", "pi-2")
    first, second = log.records()
    assert (first.action, first.subject, first.details) == ("revoke", "pi-1", {"reason": "stolen"})
    assert first.at <= second.at
    assert "@" in first.by
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600


def test_a_torn_line_costs_itself_only(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    log = AuditLog(file)
    log.append("a", "x")
    with file.open("a") as torn:
        torn.write('{"at": "2026-')
    log.append("b", "y")
    assert [record.action for record in log.records()] == ["a", "b"]


def test_no_character_hides_a_record(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("label", "pi-1\u2028\x85\x0b\r\n", label="\u2029")
    ((action, subject),) = [(record.action, record.subject) for record in log.records()]
    assert (action, subject) == ("label", "pi-1\u2028\x85\x0b\r\n")


def test_a_disk_that_takes_a_record_in_pieces_gets_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("revoke", "pi-1")
    assert [record.action for record in log.records()] == ["revoke"]


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: log.append("a", str(index)), range(64)))
    assert {record.subject for record in log.records()} == {str(index) for index in range(64)}


def test_a_log_that_cannot_be_written_stops_the_action(tmp_path: Path) -> None:
    with pytest.raises(ProvisioningError, match="cannot be written"):
        AuditLog(tmp_path / "gone" / "audit.jsonl").append("a", "x")


def test_a_fleet_begins_with_its_making(fleet: FleetDirectory) -> None:
    assert [record.action for record in fleet.audit.records()] == ["add-backend", "init"]
