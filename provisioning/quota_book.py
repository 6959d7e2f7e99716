"""What the operator has decided on quotas of single devices; the verifiers learn of it over MQTT."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from protocol.codec import decode, encode
from protocol.errors import ConfigError
from protocol.messages import Quota
from provisioning.registry import Registry

LIMITS = tuple(name for name in Quota.model_fields if name != "version")


class QuotaBook:
    """Quotas that differ from the verifiers' own settings, by device."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def changed(self, device_id: str, limits: Mapping[str, object]) -> Quota:
        """A device's quota with some limits changed: a number, `unlimited`, or None for the verifier's own.

        Raises:
            ConfigError: there is no such limit, or a value is none.
            ProvisioningError: there is no such device.
        """
        for name in limits:
            if name not in LIMITS:
                raise ConfigError(f"there is no quota {name!r}", hint=f"there are {', '.join(LIMITS)}")
        return _validated({**self.of(device_id).model_dump(), **limits})

    def put(self, device_id: str, quota: Quota) -> None:
        """Record the decision; an empty one takes an earlier one back."""
        query = "INSERT INTO quota VALUES (?, ?) ON CONFLICT (device) DO UPDATE SET limits = excluded.limits"
        with self._registry.transaction() as connection:
            if quota == Quota():
                connection.execute("DELETE FROM quota WHERE device = ?", (device_id,))
            else:
                connection.execute(query, (device_id, encode(quota).decode()))

    def of(self, device_id: str) -> Quota:
        """The decision on a device; empty when there is none.

        Raises:
            ProvisioningError: there is no such device.
        """
        self._registry.check_is_active(device_id)
        return self.all().get(device_id, Quota())

    def all(self) -> dict[str, Quota]:
        """All decisions on devices that are not revoked, by device."""
        query = (
            "SELECT device, limits FROM quota JOIN device ON id = device WHERE revoked_at IS NULL ORDER BY id"
        )
        with self._registry.transaction() as connection:
            return {device: decode(Quota, text.encode()) for device, text in connection.execute(query)}


def _validated(values: Mapping[str, object]) -> Quota:
    try:
        return Quota.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = first["loc"][0]
        raise ConfigError(
            f"quota {name} cannot be {first['input']!r}",
            hint="use a whole number of at least 0, unlimited, or default",
        ) from error
