"""The operator's side of a rotation: the old certificate is dropped only when the new one has been used."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from broker_config.configuration import BrokerFiles
from protocol.errors import ProvisioningError
from provisioning.certificate_exchange import NEW_CERTIFICATE, NEW_KEY
from provisioning.fleet_directory import FleetDirectory
from provisioning.keys import requested_key

Ask = Callable[[str, dict[str, Any]], Mapping[str, Any]]
"""Have the device do a command with arguments; its result, or a `SledError`."""
Reload = Callable[[BrokerFiles], None]


@dataclass(frozen=True)
class Rotation:
    """What was done.

    Attributes:
        serial: of the certificate in use now, hexadecimal.
        n_revoked: certificates of this device that are revoked now, earlier ones included.
        is_broker_told: False when no broker could be reloaded: the old certificate is revoked on paper only.
    """

    device: str
    serial: str
    n_revoked: int
    is_broker_told: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def rotate(fleet: FleetDirectory, device_id: str, ask: Ask, reload: Reload | None) -> Rotation:
    """Exchange the key and certificate of a running device.

    Killed or cut off in the middle, the device has an identity that the broker accepts, and doing it again
    completes it.

    Raises:
        ProvisioningError: there is no such device, or what it sent cannot be signed.
        SessionError: the device did not answer, or could not connect with the new certificate; the old one
            stays, unless the answer alone was lost.
        BrokerError: the broker could not be told to refuse the old one.
    """
    fleet.registry.check_is_active(device_id)
    answer = ask(NEW_KEY, {})
    try:
        request = base64.b64decode(str(answer.get("request", "")), validate=True)
    except binascii.Error as error:
        raise ProvisioningError(f"device {device_id} sent no signing request: {error}") from error
    public_key = requested_key(request)
    fleet.audit.append("rotate", device_id)
    certificate = fleet.authority("device").certify(device_id, public_key)
    serial = certificate.serial_number
    fleet.registry.add_temporary(certificate)
    encoded = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode("ascii")
    proven = ask(NEW_CERTIFICATE, {"certificate": encoded})
    if proven.get("serial") != f"{serial:x}":
        raise ProvisioningError(f"device {device_id} does not say that it uses its new certificate")
    fleet.registry.promote(device_id, serial)
    return drop_old(fleet, device_id, reload)


def drop_old(fleet: FleetDirectory, device_id: str, reload: Reload | None) -> Rotation:
    """Revoke every certificate of a device but its current one.

    Raises:
        ProvisioningError: there is no such device.
        BrokerError: the broker could not be told.
    """
    fleet.registry.check_is_active(device_id)
    revoked = fleet.registry.revoke_replaced(device_id)
    fleet.write_revocation_list("device")
    if reload is not None:
        reload(fleet.broker_files())
    (current,) = (record.serial for record in fleet.registry.devices() if record.id == device_id)
    fleet.audit.append("rotated", device_id, serial=current, n_revoked=len(revoked))
    return Rotation(device_id, current, len(revoked), reload is not None)
