"""Options that several commands share, and where things lie when nothing is said."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import ConfigError

FLEET_VARIABLE = "SLED_FLEET"
HOME_VARIABLE = "SLED_DEVICE_HOME"
MODELS_VARIABLE = "SLED_MODELS"


def _data_folder() -> Path:
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "sled"


def default_fleet() -> Path:
    """The fleet directory of an operator who names none."""
    return _data_folder() / "fleet"


def default_home() -> Path:
    """Where a device keeps its identity, model and journal when no other folder is named."""
    return _data_folder() / "device"


def home_flag(home: Path) -> str:
    """What a device command needs to find `home`; nothing for the one that it looks into by itself."""
    return _flag("--home", home, Path(os.environ.get(HOME_VARIABLE) or default_home()))


def fleet_flag(directory: Path) -> str:
    """What an operator's command needs to find this fleet; nothing for the one that it takes by itself."""
    return _flag("--fleet", directory, Path(os.environ.get(FLEET_VARIABLE) or default_fleet()))


def _flag(name: str, wanted: Path, found: Path) -> str:
    return "" if wanted.absolute() == found.absolute() else f" {name} {shlex.quote(str(wanted))}"


def models_folder() -> Path:
    """Where the catalogue of this machine's models is: `$SLED_MODELS`, else beside the fleet."""
    named = os.environ.get(MODELS_VARIABLE)
    return Path(named).expanduser() if named else _data_folder() / "models"


FleetOption = Annotated[
    Path,
    typer.Option(
        "--fleet",
        envvar=FLEET_VARIABLE,
        default_factory=default_fleet,
        help="Fleet directory: CAs, identities, registry.",
        show_default="~/.local/share/sled/fleet",
    ),
]
HomeOption = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar=HOME_VARIABLE,
        default_factory=default_home,
        help="Device home: identity, draft model, journal.",
        show_default="~/.local/share/sled/device",
    ),
]


def host_and_port(address: str | None, default_host: str, default_port: int) -> tuple[str, int]:
    """The parts of HOST[:PORT]; what is missing has its default.

    Raises:
        ConfigError: the port is none.
    """
    host, _, port = (address or "").partition(":")
    if not port:
        return host or default_host, default_port
    if not port.isdecimal() or not 0 < int(port) < 65_536:  # noqa: PLR2004 - TCP
        raise ConfigError(f"{port!r} is not a port", hint="use HOST:PORT")
    return host or default_host, int(port)


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for answers.")]
TemperatureOption = Annotated[
    float | None, typer.Option(min=0.0, max=10.0, help="0 is greedy. [default: the device's setting]")
]
TopKOption = Annotated[int | None, typer.Option(min=0, max=256, help="0 switches it off.")]
TopPOption = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="1 switches it off.")]
SeedOption = Annotated[
    int | None, typer.Option(min=0, max=2**64 - 1, help="Same seed, same text. [default: random, shown]")
]
MaxTokensOption = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]
