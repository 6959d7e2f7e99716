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
    """The agent of the device installed in `home`, not started yet.

    Args:
        overrides: `section.key` to value, on top of file and environment; None values were not typed.
        controller: bounds of speculation; None takes them from the settings.

    Raises:
        ConfigError: there is no device, or a setting is not legal.
        ModelError: the draft model cannot be loaded.
    """
    from device_agent.agent import DeviceAgent
    from device_agent.config import DeviceConfig
    from device_agent.drafters import load_drafter, load_vocabulary
    from device_agent.tokenizer import ChatTokenizer
    from provisioning.certificate_exchange import CertificateExchange

    exchange = CertificateExchange(home)
    exchange.settle()
    typed = {key: value for key, value in (overrides or {}).items() if value is not None}
    config = DeviceConfig.load(home, typed, os.environ)
    tokenizer = ChatTokenizer(load_vocabulary(config.model_file))
    n_threads = config.settings.draft_threads or None
    drafter = load_drafter("llama.cpp", config.model_file, n_threads=n_threads)
    return DeviceAgent(
        config,
        drafter,
        tokenizer,
        controller_options=controller,
        commands=exchange.commands(config.identity.device, config.endpoint),
    )
