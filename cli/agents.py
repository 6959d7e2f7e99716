"""A device's agent, put together from its home."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device_agent.agent import DeviceAgent
    from device_agent.controller import ControllerOptions


def agent_of(
    home: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    controller: ControllerOptions | None = None,
) -> DeviceAgent:
    """The agent of the device installed in `home`, not started yet. It takes models that the fleet delivers.

    When the draft model in use cannot be loaded, the one before comes back.

    Args:
        overrides: `section.key` to value, on top of file and environment; None values were not typed.
        controller: bounds of speculation; None takes them from the settings.

    Raises:
        ConfigError: there is no device, or a setting is not legal.
        ModelError: the draft model cannot be loaded.
    """
    from device_agent.agent import DeviceAgent
    from device_agent.delivery.delivery import Delivery
    from device_agent.delivery.model_start import start_model
    from device_agent.tokenizer import ChatTokenizer
    from provisioning.certificate_exchange import CertificateExchange

    exchange = CertificateExchange(home)
    exchange.settle()
    typed = {key: value for key, value in (overrides or {}).items() if value is not None}
    started = start_model(home, typed, os.environ)
    config = started.config
    return DeviceAgent(
        config,
        started.drafter,
        ChatTokenizer(started.vocabulary),
        controller_options=controller,
        commands=exchange.commands(config.identity.device, config.endpoint),
        delivery=Delivery(config),
    )
