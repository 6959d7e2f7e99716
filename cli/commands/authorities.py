"""`sled fleet ca` and `sled fleet root`: the life of a fleet's certificate authorities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.diagnostics import say
from cli.options import FleetOption, JsonOption
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from provisioning.authority import AuthorityKind
    from provisioning.fleet_directory import FleetDirectory

app = typer.Typer(
    help="The fleet's CAs: how long they last, new certificates and keys, encryption.", no_args_is_help=True
)
root_app = typer.Typer(help="The root's key, which may be kept elsewhere.", no_args_is_help=True)

KindArgument = Annotated[str, typer.Argument(help="device, backend, claim or server.", metavar="CA")]
ReloadCommandOption = Annotated[
    str | None,
    typer.Option(help="Command that gives a foreign broker the files in $SLED_BROKER_FILES and reloads it."),
]


@app.command("ls")
def list_authorities(*, fleet: FleetOption, json: JsonOption = False) -> None:
    """List the CAs: their ends, earlier keys still trusted, and who depends on those. Needs no passphrase."""
    from provisioning.ca_renewal import authority_states
    from provisioning.fleet_directory import FleetDirectory

    directory = FleetDirectory.open(fleet)
    rows = [state.to_json() for state in authority_states(directory)]
    if json:
        output.as_json(rows)
        return
    output.table(("ca", "name", "ends", "encrypted", "previous", "depending"), rows, empty="no CAs")
    if directory.root.exists:
        place = "kept elsewhere" if directory.root.is_away else "in the fleet directory"
        say(f"the key of the root is {place}")


@app.command()
def renew(
    kind: KindArgument,
    *,
    fleet: FleetOption,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="A new key, with the old one trusted beside it.")
    ] = False,
    root: Annotated[
        Path | None,
        typer.Option(help="Where the root's key is; the server CA needs it.", metavar="DIR"),
    ] = None,
    reload_command: ReloadCommandOption = None,
) -> None:
    """Give a CA a new certificate, or a new key, while devices and backends stay connected.

    With --new-key what the old key has signed stays valid until sled fleet ca retire. Broker and backends get
    their new certificates at once; devices get theirs from sled fleet serve, or one by one from sled fleet
    rotate.
    """
    from provisioning.ca_renewal import renew_certificate, renew_key
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.key_file import known_passphrase
    from provisioning.keys import is_encrypted

    directory, checked = FleetDirectory.open(fleet), _kind(kind)
    if new_key:
        is_secret = is_encrypted(directory.authority(checked).directory / "key.pem")
        renew_key(directory, checked, root, passphrase=known_passphrase() if is_secret else None)
    else:
        renew_certificate(directory, checked, root)
    ends = directory.authority(checked).certificate.not_valid_after_utc
    say(f"the {kind} CA has a new {'key and ' if new_key else ''}certificate, until {ends:%Y-%m-%d}")
    _tell(directory, reload_command)
    if new_key and checked in {"device", "claim"}:
        say(f"the old key stays trusted until: sled fleet ca retire {kind}")


@app.command()
def retire(
    kind: KindArgument,
    *,
    fleet: FleetOption,
    force: Annotated[
        bool, typer.Option("--force", help="Lock out who still depends on an earlier key.")
    ] = False,
    reload_command: ReloadCommandOption = None,
) -> None:
    """Stop trusting the earlier keys of a CA, once nobody depends on them."""
    from provisioning import ca_renewal
    from provisioning.fleet_directory import FleetDirectory

    directory = FleetDirectory.open(fleet)
    n_retired = ca_renewal.retire(directory, _kind(kind), force=force)
    say(f"{n_retired} earlier key(s) of the {kind} CA are not trusted any more")
    _tell(directory, reload_command)


@app.command()
def encrypt(*, fleet: FleetOption) -> None:
    """Encrypt all CA keys in the fleet directory with a passphrase.

    It is taken from the file that $SLED_CA_PASSPHRASE_FILE names, from $SLED_CA_PASSPHRASE, or typed;
    commands that sign take it from there, too.
    """
    from provisioning.ca_renewal import encrypt_keys
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.key_file import new_passphrase

    directory = FleetDirectory.open(fleet)
    if any(_encrypted(directory)):
        raise ConfigError(
            "CA keys of this fleet are encrypted already",
            hint="for another passphrase: sled fleet ca decrypt, then encrypt",
        )
    n_keys = encrypt_keys(directory, new_passphrase())
    say(f"{n_keys} keys are encrypted; without the passphrase they are lost")


@app.command()
def decrypt(*, fleet: FleetOption) -> None:
    """Write all CA keys in the fleet directory without encryption."""
    from provisioning.ca_renewal import encrypt_keys
    from provisioning.fleet_directory import FleetDirectory

    say(f"{encrypt_keys(FleetDirectory.open(fleet), None)} keys are plain now")


@root_app.command("export")
def export_root(
    directory: Annotated[Path, typer.Argument(help="Where to put it.", metavar="DIR")], *, fleet: FleetOption
) -> None:
    """Move the root's key out of the fleet directory; the fleet works without it.

    Only sled fleet ca renew server needs it, with --root DIR.
    """
    from provisioning.fleet_directory import FleetDirectory

    opened = FleetDirectory.open(fleet)
    opened.root.export(directory)
    opened.audit.append("export-root", opened.fleet, to=str(directory))
    say(f"the root's key is in {directory} and not in {fleet} any more; keep two copies off this machine")


def _kind(kind: str) -> AuthorityKind:
    from provisioning.authority import AUTHORITY_KINDS

    if kind not in AUTHORITY_KINDS:
        raise ConfigError(f"there is no CA {kind!r}", hint=f"use one of: {', '.join(AUTHORITY_KINDS)}")
    return kind


def _encrypted(fleet: FleetDirectory) -> list[bool]:
    from provisioning.ca_renewal import authority_states

    return [state.is_encrypted for state in authority_states(fleet)]


def _tell(fleet: FleetDirectory, reload_command: str | None) -> None:
    """Have the broker take over what has changed, and see that devices still get in."""
    from cli.broker_access import access_to
    from provisioning.revocation import prove_others_pass

    access = access_to(fleet, broker=None, reload_command=reload_command, admin=None)
    if access is None:
        say("no broker runs from the fleet directory: give yours the files of sled broker files")
        return
    access.reload(fleet.broker_files())
    prove_others_pass(fleet, access)
    say("the broker has taken it over, and devices get in")
