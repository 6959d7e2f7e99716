"""Batches: checked whole before anything is made, made whole in the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.batch import BatchRow, provision_batch, read_batch
from protocol.errors import ConfigError, ModelError, ProvisioningError
from provisioning.bundle import install
from provisioning.fleet_directory import FleetDirectory
from tests.tiny_draft import write_vocabulary


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetDirectory:
    return FleetDirectory.create(tmp_path_factory.mktemp("batch") / "fleet", fleet="home")


def _csv(path: Path, text: str) -> Path:
    file = path / "bench.csv"
    file.write_text(text)
    return file


def test_rows_carry_model_and_settings_and_empty_cells_the_default(tmp_path: Path) -> None:
    model = write_vocabulary(tmp_path / "draft.gguf")
    file = _csv(tmp_path, f"device,model,temperature,max_draft\npi-1,{model},0.5,3\n pi-2 ,,,\n")
    assert read_batch(file) == (
        BatchRow("pi-1", str(model), {"temperature": 0.5, "max_draft": 3}),
        BatchRow("pi-2", None, {}),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no devices"),
        ("device\n", "no devices"),
        ("name\npi-1\n", "no devices"),
        ("device\npi-1\nPi 2\n", "line 3.*legal name"),
        ("device\npi-1\npi-1\n", "line 3.*twice"),
        ("device,tempreature\npi-1,0\n", "line 2.*tempreature"),
        ("device,temperature\npi-1,hot\n", "line 2"),
        ("device,model\npi-1\n", "line 2.*number of cells"),
        ("device\npi-1,x\n", "line 2.*number of cells"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_batch(_csv(tmp_path, text))


def test_a_missing_model_is_found_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        read_batch(_csv(tmp_path, "device,model\npi-1,gone.gguf\n"))


def test_a_batch_that_was_cut_off_is_completed(fleet: FleetDirectory, tmp_path: Path) -> None:
    model = str(write_vocabulary(tmp_path / "draft.gguf"))
    rows = [BatchRow(f"pi-{number}", model) for number in range(3)]
    out = tmp_path / "bundles"
    first, _ = provision_batch(fleet, rows[:1], out, host="edge", port=8883)
    made, there = provision_batch(fleet, rows, out, host="edge", port=8883)
    assert there == first
    assert [file.name for file in made] == ["pi-1.sled", "pi-2.sled"]
    assert install(made[1], tmp_path / "home").device == "pi-2"


def test_a_taken_id_stops_the_whole_batch(fleet: FleetDirectory, tmp_path: Path) -> None:
    model = str(write_vocabulary(tmp_path / "draft.gguf"))
    provision_batch(fleet, [BatchRow("taken", model)], tmp_path / "elsewhere", host="edge", port=8883)
    with pytest.raises(ProvisioningError, match="taken is provisioned"):
        provision_batch(
            fleet,
            [BatchRow("fresh", model), BatchRow("taken", model)],
            tmp_path / "out",
            host="edge",
            port=8883,
        )
    assert "fresh" not in [record.id for record in fleet.registry.devices()]
