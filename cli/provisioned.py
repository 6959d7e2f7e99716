"""Provisioning as the command line does it: names of models become files, house settings become defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.targets import DraftModel, resolve_draft

if TYPE_CHECKING:
    from provisioning.fleet_directory import FleetDirectory

HOUSE_TEMPERATURE = 0.3
"""The bundled target is small: far from its most likely tokens it loses the thread."""


def provision(
    fleet: FleetDirectory,
    device: str,
    *,
    model: str | None,
    out: Path,
    host: str,
    port: int,
    settings: Mapping[str, Any],
    replace: bool = False,
) -> Path:
    """Write the bundle of one device; a bundled draft comes with the sample house that it was trained for.

    Raises:
        ModelError: the draft model cannot be used.
        ConfigError: a setting is unknown or out of range.
        ProvisioningError: the id is taken, or the bundle cannot be written.
    """
    from device_agent.settings import Settings
    from provisioning.bundle import BrokerAddress, ModelFiles, make_bundle

    draft = resolve_draft(model)
    chosen = {**house_settings(draft), **settings}
    Settings.of(chosen)
    return make_bundle(
        fleet,
        device,
        ModelFiles.of(draft.file, draft.name),
        BrokerAddress(host=host, port=port),
        out,
        settings=chosen,
        replace=replace,
    )


def house_settings(draft: DraftModel) -> dict[str, Any]:
    """What a device with this draft should start with: the sample house for a bundled one, else nothing."""
    from provisioning.catalogue import bundled_pair

    pair = bundled_pair()
    if draft.file not in pair.drafts.values():
        return {}
    return {"system_prompt": pair.system_prompt, "temperature": HOUSE_TEMPERATURE}
