"""The messages between a newcomer with a claim and provisioning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from protocol.messages import Message


class EnrollRequest(Message):
    """A newcomer's wish for an identity, repeated until it is answered.

    Attributes:
        request: signing request (DER) in base64; only its key is used.
        name: device id that the newcomer would like; empty leaves it to the fleet.
        model: name of its draft model.
    """

    request: str = Field(min_length=1, max_length=4_000)
    name: str = Field(default="", max_length=48)
    model: str = Field(default="", max_length=200)


class EnrollResponse(Message):
    """Provisioning to a newcomer: its identity, or why there is none. The same request gets the same answer.

    Attributes:
        refusal: empty when it was granted; else `unknown`, `expired`, `used`, `withdrawn`, `name_taken` or
            `bad_request`. Trying again can help with a name only.
        certificate: DER in base64, over the key of the request.
        device_port: of the listener for devices, on the host that the newcomer has reached.
        settings: for the device's configuration.
    """

    refusal: Literal["", "unknown", "expired", "used", "withdrawn", "name_taken", "bad_request"] = ""
    detail: str = Field(default="", max_length=300)
    device: str = Field(default="", pattern=r"^[a-z0-9-]{0,48}$")
    certificate: str = Field(default="", max_length=4_000)
    device_port: int = Field(default=0, ge=0, le=65_535)
    settings: dict[str, str | bool | int | float] = Field(default_factory=dict, max_length=64)
