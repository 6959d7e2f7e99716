"""A bench of devices from a CSV file: one row, one bundle."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.assignment import parse_assignments
from cli.provisioned import provision
from cli.targets import resolve_draft
from protocol.errors import ConfigError, reason_of
from protocol.identifiers import check_name

if TYPE_CHECKING:
    from provisioning.fleet_directory import FleetDirectory

MAX_ROWS = 10_000


@dataclass(frozen=True)
class BatchRow:
    """One device of a batch; `model` None is the default draft."""

    device: str
    model: str | None
    settings: dict[str, Any] = field(default_factory=dict)


def read_batch(file: Path) -> tuple[BatchRow, ...]:
    """The rows of a CSV file with a header: `device`, optionally `model`, and settings by their names.

    An empty cell leaves the default.

    Raises:
        ConfigError: the file, a name or a setting cannot be used, or an id is there twice; it names the line.
        ModelError: a draft model cannot be used.
    """
    from device_agent.settings import Settings

    try:
        with file.open(encoding="utf-8-sig", newline="") as content:
            reader = csv.DictReader(content, strict=True)
            lines = [(reader.line_num, line) for line, _ in zip(reader, range(MAX_ROWS), strict=False)]
            columns = reader.fieldnames or ()
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"batch {file} cannot be read: {reason_of(error)}",
            hint="it is a CSV file with the header device,model",
        ) from error
    if "device" not in columns or not lines:
        raise ConfigError(f"batch {file} has no devices", hint="begin with a header line: device,model")
    rows: dict[str, BatchRow] = {}
    for number, line in lines:
        try:
            row = _row(line)
            Settings.of(row.settings)
        except ConfigError as error:
            raise ConfigError(f"{file}, line {number}: {error}", hint=error.hint) from error
        if row.device in rows:
            raise ConfigError(f"{file}, line {number}: device {row.device} is there twice")
        rows[row.device] = row
    for model in {row.model for row in rows.values()}:
        resolve_draft(model)
    return tuple(rows.values())


def provision_batch(
    fleet: FleetDirectory, rows: Sequence[BatchRow], directory: Path, *, host: str, port: int
) -> tuple[list[Path], list[Path]]:
    """Make `DEVICE.sled` in `directory` for each row; those made, and those that an earlier run had made.

    Nothing is made when an id is taken by a device whose bundle is not there.

    Raises:
        ProvisioningError: an id is taken, or a bundle cannot be written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = {record.id for record in fleet.registry.devices()}
    files = {row.device: directory / f"{row.device}.sled" for row in rows}
    there = [file for device, file in files.items() if device in known and file.exists()]
    missing = [row for row in rows if files[row.device] not in there]
    for row in missing:
        fleet.registry.check_is_new(row.device)
    made = [
        provision(
            fleet,
            row.device,
            model=row.model,
            out=files[row.device],
            host=host,
            port=port,
            settings=row.settings,
        )
        for row in missing
    ]
    return made, there


def _row(line: dict[str | Any, str | Any]) -> BatchRow:
    if None in line or None in line.values():
        raise ConfigError("it has another number of cells than the header")
    cells = {str(name).strip(): str(value).strip() for name, value in line.items()}
    device = check_name("device", cells.pop("device"))
    model = cells.pop("model", "") or None
    settings = parse_assignments([f"{name}={value}" for name, value in cells.items() if value])
    return BatchRow(device, model, settings)
