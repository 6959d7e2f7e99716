"""Ports that nobody listens on."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping

from broker_config.configuration import BrokerPorts
from protocol.errors import BrokerError


def check_is_free(host: str, port: int, name: str) -> None:
    """Do nothing when `port`, wanted for the listener `name`, can be listened on.

    Raises:
        BrokerError: it is in use, or the address is not of this machine.
    """
    try:
        _hold(host, port).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise BrokerError(
                f"the broker cannot listen on {host}:{port}: {error.strerror}",
                hint="choose an address of this machine and a port above 1023",
            ) from error
        raise BrokerError(
            f"port {port}, wanted for {name}, is in use by another program",
            hint="stop that program, or choose another port",
        ) from error


def choose_ports(listen: str, fixed: Mapping[str, int | None]) -> BrokerPorts:
    """The ports of `fixed` and a free one for each that is None, and for administration, always local.

    Another program may take one before the broker does.
    """
    wanted = {**fixed, "admin": None}
    holders: list[socket.socket] = []
    try:
        for name, port in wanted.items():
            if port is None:
                holders.append(_hold("127.0.0.1" if name == "admin" else listen, 0))
                wanted[name] = holders[-1].getsockname()[1]
    finally:
        for holder in holders:
            holder.close()
    return BrokerPorts(host=listen, **{name: int(port or 0) for name, port in wanted.items()})


def _hold(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
