"""The two slots for draft models on a device: the one in use, and the one before it as the way back.

    models/slots.json      replaced in one step; without it the model of device.toml is the one in use

The file that `device.toml` names is never removed: it is the last resort when both slots fail.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.atomic_file import SECRET_MODE, locked, write_atomically
from protocol.errors import ModelError
from protocol.messages import Counter
from protocol.model_manifest import ModelManifest
from protocol.model_messages import DeliveryState, ModelStatus

if TYPE_CHECKING:
    from device_agent.config import DeviceConfig

_logger = logging.getLogger(__name__)

_DELIVERED = re.compile(r".+-[0-9a-f]{8}\.gguf")
"""Names that the fleet gives to model files; others in the directory are not ours to remove."""
MOST_STARTS = 2
"""Starts that a new model may fail by taking the process down with it, before the one before it is back."""


class ModelSlot(BaseModel):
    """One model file, as `[model]` of device.toml; `path` is relative to the home."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    path: str = Field(min_length=1)
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    vocabulary: str = Field(default="", pattern=r"^([0-9a-f]{16})?$")
    name: str = ""


class Slots(BaseModel):
    """What `slots.json` says. Immutable; each change makes a new one.

    Attributes:
        previous: what was in use before; None when there is nothing to go back to.
        is_proven: whether `current` has loaded and drafted in the agent since it was put to use.
        n_starts: how often that was tried.
        status: of the newest delivery that was taken up, which is never taken up again once it is over.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    format: Literal[1] = 1
    current: ModelSlot
    previous: ModelSlot | None = None
    is_proven: bool = True
    n_starts: Counter = 0
    status: ModelStatus | None = None

    def with_status(self, status: ModelStatus) -> Slots:
        return self.model_copy(update={"status": status})

    def switched(self, slot: ModelSlot) -> Slots:
        """`slot` is in use, on trial; what was in use before is the way back."""
        update = {"current": slot, "previous": self.current, "is_proven": False, "n_starts": 0}
        return self.model_copy(update=update)

    def started(self) -> Slots:
        """The agent is about to load a model that is on trial."""
        return self.model_copy(update={"n_starts": self.n_starts + 1})

    def proven(self) -> Slots:
        """It loads and drafts."""
        return self.model_copy(update={"is_proven": True, "n_starts": 0})

    def fallen_back(self, to: ModelSlot, reason: str) -> Slots:
        """`to` is back because the one in use failed, which is given up."""
        back = self.model_copy(update={"current": to, "previous": None, "is_proven": True, "n_starts": 0})
        return back.ended("fell_back", reason)

    def rolled_back(self) -> Slots:
        """The one before is in use again, by somebody's will.

        Raises:
            ModelError: there is none.
        """
        if self.previous is None:
            raise ModelError(
                "there is no model to go back to", hint="have one pushed: sled fleet models push"
            )
        update = {"current": self.previous, "previous": self.current, "is_proven": True, "n_starts": 0}
        return self.model_copy(update=update).ended("rolled_back", "")

    def without_previous(self) -> Slots:
        """The way back is given up."""
        return self.model_copy(update={"previous": None})

    def ended(self, state: DeliveryState, reason: str) -> Slots:
        if self.status is None:
            return self
        status = self.status.model_copy(update={"state": state, "reason": reason[:300]})
        return self.with_status(status)


class SlotStore:
    """`models/slots.json` of one home; several processes may use it.

    Args:
        own: the model of device.toml; in use while there are no slots.
    """

    def __init__(self, home: Path, own: ModelSlot) -> None:
        self._home = home
        self._file = slots_file(home)
        self._own = own

    @property
    def directory(self) -> Path:
        """Where model files are."""
        return self._file.parent

    def load(self) -> Slots:
        """What is in use."""
        return read_slots(self._home) or Slots(current=self._own)

    def update(self, change: Callable[[Slots], Slots]) -> Slots:
        """Replace what is there by what `change` makes of it, durably; removes files that fell out.

        Raises:
            OSError: the disk is full or not writable; nothing has changed.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.directory / ".slots.lock"):
            before = self.load()
            after = change(before)
            if after != before:
                content = after.model_dump_json(exclude_defaults=True).encode()
                write_atomically(self._file, content, mode=SECRET_MODE)
                self._remove_unused(before, after)
        return after

    def fall_back(self, reason: str) -> bool:
        """Go back from a model that does not work; False when there is nothing to go back to."""
        slots = self.load()
        to = slots.previous or (self._own if slots.current != self._own else None)
        if to is None:
            return False
        _logger.warning(
            "draft model %s does not work (%s): going back to %s", _name(slots.current), reason, _name(to)
        )
        self.update(lambda present: present.fallen_back(to, reason))
        return True

    def remove_strays(self, wanted: str) -> None:
        """Remove delivered files that no slot names, such as of an offer taken back while it waited.

        Args:
            wanted: name of the file that is on its way.

        Raises:
            OSError: the directory cannot be read or written.
        """
        slots = read_slots(self._home)
        if slots is None and self._file.exists():
            return  # who cannot read what is in use removes nothing
        slots = slots or Slots(current=self._own)
        used = (self._own, slots.current, *([slots.previous] if slots.previous else []))
        kept = {wanted, *(Path(slot.path).name for slot in used)}
        for file in self.directory.glob("*.gguf"):
            if _DELIVERED.fullmatch(file.name) and file.name not in kept:
                file.unlink(missing_ok=True)

    def _remove_unused(self, before: Slots, after: Slots) -> None:
        kept = {self._own.path, after.current.path, *([after.previous.path] if after.previous else [])}
        for slot in (before.current, before.previous):
            if slot is not None and slot.path not in kept:
                file = self._home / slot.path
                if file.resolve().parent == self.directory.resolve():
                    file.unlink(missing_ok=True)


def store_of(config: DeviceConfig) -> SlotStore:
    """The slots of an installed device."""
    own = config.own_model or config.model
    return SlotStore(config.home, ModelSlot.model_validate(own.model_dump()))


def slots_file(home: Path) -> Path:
    """Where a home keeps them."""
    return home / "models" / "slots.json"


def read_slots(home: Path) -> Slots | None:
    """What a home's slots say; None when there are none, or they are damaged (which is logged)."""
    file = slots_file(home)
    try:
        return Slots.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _logger.warning("%s cannot be read, the model of device.toml is used: %s", file, type(error).__name__)
        return None


def slot_of(manifest: ModelManifest) -> ModelSlot:
    """The slot for a delivered model."""
    return ModelSlot(
        path=f"models/{manifest.file}",
        sha256=manifest.sha256,
        vocabulary=manifest.vocabulary,
        name=manifest.name,
    )


def _name(slot: ModelSlot) -> str:
    return slot.name or Path(slot.path).name
