"""Loads the draft model in use when an agent starts, and goes back to the one before when it does not work.

A model that was put to use a moment ago is on trial: each start is counted before it is loaded, so that one
that takes the process down with it is given up after a few. Any model that cannot be loaded is given up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_agent.config import DeviceConfig
from device_agent.delivery.health_check import check_drafts, check_vocabulary
from device_agent.delivery.slots import MOST_STARTS, ModelSlot, Slots, SlotStore, store_of
from device_agent.drafter import Drafter
from device_agent.drafters import load_drafter, load_vocabulary
from device_agent.vocabulary import Vocabulary
from protocol.errors import ModelError

_logger = logging.getLogger(__name__)

_TRIAL_TEXT = "The lamp in the kitchen is on."


@dataclass(frozen=True)
class StartedModel:
    """A loaded model, and the configuration that names it."""

    config: DeviceConfig
    vocabulary: Vocabulary
    drafter: Drafter


def start_model(
    home: Path,
    typed: Mapping[str, Any],
    environment: Mapping[str, str],
    load: Callable[[DeviceConfig], StartedModel] | None = None,
) -> StartedModel:
    """Load the draft model of the device in `home`, or the one before if need be.

    Args:
        typed, environment: as `DeviceConfig.load`; a model that is named there is loaded or refused.
        load: what loads it; None is llama.cpp.

    Raises:
        ConfigError: there is no device, or a setting is not legal.
        ModelError: no draft model can be loaded.
    """
    load = load or _load
    while True:
        config = DeviceConfig.load(home, typed, environment)
        if config.own_model is None:
            return load(config)
        store = store_of(config)
        slots = _counted(store)
        if slots.n_starts > MOST_STARTS:
            if store.fall_back(f"the device did not come up with it {MOST_STARTS} times"):
                continue
            return load(config)
        try:
            started = load(config)
            _check(started, slots.current, is_on_trial=not slots.is_proven)
        except ModelError as error:
            if not store.fall_back(str(error)):
                raise
            continue
        if not slots.is_proven:
            _note(store, Slots.proven)
        return started


def _counted(store: SlotStore) -> Slots:
    """The slots, with this start counted while the model is on trial."""
    return _note(store, lambda slots: slots if slots.is_proven else slots.started())


def _note(store: SlotStore, change: Callable[[Slots], Slots]) -> Slots:
    """A full disk keeps no device from starting."""
    try:
        return store.update(change)
    except OSError as error:
        _logger.warning("%s cannot be written: %s", store.directory, error.strerror or error)
        return store.load()


def _load(config: DeviceConfig) -> StartedModel:
    vocabulary = load_vocabulary(config.model_file)
    n_threads = config.settings.draft_threads or None
    return StartedModel(config, vocabulary, load_drafter("llama.cpp", config.model_file, n_threads=n_threads))


def _check(started: StartedModel, slot: ModelSlot, *, is_on_trial: bool) -> None:
    """Return when it is the file that was delivered; on trial also when it drafts.

    Raises:
        ModelError: it is not; the drafter is closed then.
    """
    info = started.drafter.info
    try:
        if slot.sha256 and info.model_hash != slot.sha256:
            raise ModelError(f"{slot.path} has changed on the disk since it was put there")
        if is_on_trial:
            check_vocabulary(info.vocabulary, slot.vocabulary)
            check_drafts(started.drafter, started.vocabulary.encode(_TRIAL_TEXT))
    except ModelError:
        started.drafter.close()
        raise
